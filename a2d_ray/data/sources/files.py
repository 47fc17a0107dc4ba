"""Files -> rows as they are stored: one reader per format, streaming where the format allows."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from a2d_ray.data.sources.adapters import MalformedRowError
from a2d_ray.data.sources.mixture import SpecError
from a2d_ray.data.sources.storage import open_file

RawRow = dict[str, Any] | MalformedRowError
NumberedRow = tuple[int, RawRow]
FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
}
LONGEST_CSV_FIELD = 2**30
_BATCH_ROWS = 256


def file_format(name: str) -> str | None:
    """Format of a file by its suffix, or None."""
    return FORMATS.get(Path(name.removesuffix(".gz")).suffix.lower())


def read_file(path: str, format: str) -> Iterator[NumberedRow]:
    """Rows of a file, local or remote, plain or gzipped.

    Args:
        path: `storage.DataFile.path`.
        format: a value of `FORMATS`.

    Returns:
        In order, (number, row): lines of jsonl and csv count from 1, rows of the others too. A row
        that cannot be read is a `MalformedRowError` with the reason.

    Raises:
        ValueError: a parquet, arrow or gzip file that is damaged; names it.
    """
    import pyarrow as pa

    with open_file(path) as file:
        try:
            yield from _READERS[format](file)
        except (pa.ArrowInvalid, EOFError, OSError) as error:
            raise SpecError(path, f"cannot be read as {format}", str(error)) from error


def _read_parquet(file: IO[bytes]) -> Iterator[NumberedRow]:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS)
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _read_arrow(file: IO[bytes]) -> Iterator[NumberedRow]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _read_jsonl(file: IO[bytes]) -> Iterator[NumberedRow]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _parse_json(line)


def _read_json(file: IO[bytes]) -> Iterator[NumberedRow]:
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
        yield 1, MalformedRowError("invalid JSON")
        return
    for number, row in enumerate(rows, start=1):
        yield number, row if isinstance(row, dict) else MalformedRowError("not an object")


def _parse_json(line: bytes) -> RawRow:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return MalformedRowError("invalid UTF-8")
    except (ValueError, RecursionError):
        return MalformedRowError("invalid JSON")
    return row if isinstance(row, dict) else MalformedRowError("not an object")


def _read_csv(file: IO[bytes]) -> Iterator[NumberedRow]:
    """Invalid UTF-8 becomes lone surrogates, which adapters refuse as "invalid Unicode"."""
    csv.field_size_limit(LONGEST_CSV_FIELD)
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        _ = rows.fieldnames  # reads the header
        while True:
            start = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield start, MalformedRowError("invalid CSV")
                continue
            is_whole = None not in row and None not in row.values()
            yield start, row if is_whole else MalformedRowError("other columns than the header")


def _read_text(file: IO[bytes]) -> Iterator[NumberedRow]:
    """A text file is one document."""
    try:
        yield 1, {"text": file.read().decode("utf-8-sig")}
    except UnicodeDecodeError:
        yield 1, MalformedRowError("invalid UTF-8")


_READERS: dict[str, Callable[[IO[bytes]], Iterator[NumberedRow]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "text": _read_text,
}
