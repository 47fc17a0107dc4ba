"""Files -> rows as they are stored: one reader per format, streaming where the format allows."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from a2d_ray.data.adapters import MalformedRowError

RawRow = dict[str, Any] | MalformedRowError
FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
}


def file_format(name: str) -> str | None:
    """Format of a file by its suffix, or None."""
    return FORMATS.get(Path(name.removesuffix(".gz")).suffix.lower())


def read_file(path: str, format: str) -> Iterator[RawRow]:
    """Rows of a file, local or remote (``hf://``, ``s3://``), plain or gzipped.

    Args:
        path: anything that fsspec opens.
        format: a value of `FORMATS`.

    Returns:
        Rows in order; a row that cannot be read is a `MalformedRowError` with the reason.
    """
    import fsspec

    with fsspec.open(path, "rb", compression="infer") as file:
        yield from _READERS[format](file)


def _read_parquet(file: IO[bytes]) -> Iterator[RawRow]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(file).iter_batches(batch_size=256):
        yield from batch.to_pylist()


def _read_arrow(file: IO[bytes]) -> Iterator[RawRow]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        yield from batch.to_pylist()


def _read_jsonl(file: IO[bytes]) -> Iterator[RawRow]:
    for line in file:
        if line.strip():
            yield _parse_json(line)


def _read_json(file: IO[bytes]) -> Iterator[RawRow]:
    """A list of objects; a file of JSON lines that calls itself .json is read as such."""
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    file.seek(0)
    if start != b"[":
        yield from _read_jsonl(file)
        return
    try:
        rows = json.load(file)
    except (ValueError, RecursionError):
        yield MalformedRowError("invalid JSON")
        return
    for row in rows:
        yield row if isinstance(row, dict) else MalformedRowError("not an object")


def _parse_json(line: bytes) -> RawRow:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return MalformedRowError("invalid UTF-8")
    except (ValueError, RecursionError):
        return MalformedRowError("invalid JSON")
    return row if isinstance(row, dict) else MalformedRowError("not an object")


def _read_csv(file: IO[bytes]) -> Iterator[RawRow]:
    lines = (line.decode(errors="replace") for line in file)
    yield from csv.DictReader(lines)


def _read_text(file: IO[bytes]) -> Iterator[RawRow]:
    """A text file is one document."""
    yield {"text": file.read().decode(errors="replace")}


_READERS: dict[str, Callable[[IO[bytes]], Iterator[RawRow]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "text": _read_text,
}
