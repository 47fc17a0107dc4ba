"""Files -> rows as they are stored: one reader per format, streaming where the format allows."""

import codecs
import csv
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from a2d_ray.data.sources.adapters import ROW_SHAPES, MalformedRowError
from a2d_ray.data.sources.mixture import SpecError
from a2d_ray.data.sources.storage import COMPRESSIONS, open_file

RawRow = dict[str, Any] | MalformedRowError
NumberedRow = tuple[int, RawRow]
FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
}
LONGEST_CSV_FIELD = 2**30
_BATCH_ROWS = 256


def file_format(name: str) -> str | None:
    """Format of a file by its suffix, or None."""
    path = Path(name.lower())
    return FORMATS.get(path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix)


def read_file(path: str, format: str) -> Iterator[NumberedRow]:
    """Rows of a file, local or remote, plain or gzipped.

    Args:
        path: `storage.DataFile.path`.
        format: a value of `FORMATS`.

    Returns:
        In order, (number, row): lines of jsonl and csv count from 1, rows of the others too. A row
        that cannot be read is a `MalformedRowError` with the reason.

    Raises:
        ValueError: a parquet, arrow or packed file that is damaged, or text in another encoding
            than UTF-8; names it.
    """
    import pyarrow as pa

    with open_file(path) as file:
        try:
            is_text = format not in ("parquet", "arrow")
            yield from _READERS[format](_without_mark(path, file) if is_text else file)
        except (pa.ArrowInvalid, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise SpecError(path, f"cannot be read as {format}", str(error)) from error


def _without_mark(path: str, file: Any) -> IO[bytes]:
    """A text file behind its byte-order mark.

    Raises:
        SpecError: it is UTF-16 or UTF-32.
    """
    text: IO[bytes] = file if hasattr(file, "peek") else io.BufferedReader(file)
    start = text.peek(4)[:4]  # type: ignore[attr-defined]
    if start.startswith(codecs.BOM_UTF8):
        text.read(len(codecs.BOM_UTF8))
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise SpecError(path, "is UTF-16 or UTF-32", "save it as UTF-8")
    return text


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
    """Lines of JSON; one list or one indented object that calls itself so is read as such."""
    yield from _read_json(file, is_whole=lambda line: line.strip() in (b"[", b"{"))


def _read_json(
    file: IO[bytes], is_whole: Callable[[bytes], bool] = lambda line: True
) -> Iterator[NumberedRow]:
    """One JSON value that holds the rows; lines of JSON that call themselves .json are read so.

    Args:
        file: behind its byte-order mark.
        is_whole: whether a first line that is no row by itself may begin such a value.
    """
    number = 1
    while (line := file.readline()) and not line.strip():
        number += 1
    rest: Iterable[bytes] = file
    is_row = isinstance(_parse_json(line), dict)
    if is_whole(line):
        second = file.readline() if is_row else b""
        if not second.strip():
            whole = b"".join([line, second, *file])
            rows = _rows_of(whole)
            if rows is not None:
                yield from enumerate(rows, start=1)
                return
            rest = whole.splitlines(keepends=True)[1:]
        else:
            rest = itertools.chain([second], file)
    for at, text in enumerate(itertools.chain([line], rest), start=number):
        if text.strip():
            yield at, _parse_json(text)


def _rows_of(text: bytes) -> list[RawRow] | None:
    """The rows of one JSON value: a list, an object that holds one, a row; None: it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        is_row = any(set(needed) <= set(value) for needed in ROW_SHAPES)
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        value = lists[0] if len(lists) == 1 and not is_row else [value]
    rows = value if isinstance(value, list) else [value]
    return [row if isinstance(row, dict) else MalformedRowError("not an object") for row in rows]


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
        header = lines.readline()
        # Where no comma is, the header tells how columns are parted: ; in Europe, tabs in .tsv.
        delimiter = next((mark for mark in ",;\t|" if mark in header), ",")
        chained = itertools.chain([header], lines)
        rows = csv.DictReader(chained, strict=True, delimiter=delimiter)
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
