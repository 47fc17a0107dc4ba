"""Which rows of a source belong to a split, and how a task reads them. No Ray here."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from a2d_ray.config import DataSection
from a2d_ray.data.hashing import uniform
from a2d_ray.data.sources import ReadRow, Shard, Source, Split, read_shard

ROWS_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("where", pa.string()),
        ("row_key", pa.string()),
        ("payload", pa.string()),
        ("reason", pa.string()),
    ]
)
_ROWS_PER_TABLE = 256


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of one source that one split takes.

    Attributes:
        source: where they come from, and `number` its place in the mixture.
        shards: what is read.
        split: the split they are for.
        limit: rows at most, in order; None: all.
        test_fraction: share held out of these shards by a hash; 0 if the source has a test split.
        text_field: column of plain text, or None.
        seed: of the hash.
    """

    source: Source
    number: int
    shards: tuple[Shard, ...]
    split: Split
    limit: int | None
    test_fraction: float
    text_field: str | None
    seed: int

    @classmethod
    def of(
        cls, source: Source, number: int, split: Split, data: DataSection, seed: int
    ) -> "Selection | None":
        """The selection, or None if it is empty by its options."""
        spec = source.spec
        limit = spec.train if split == "train" else spec.test
        fraction = 0.0 if source.test else _test_fraction(spec.train, spec.test, data)
        if limit == 0 or (split == "test" and not source.test and fraction == 0):
            return None
        shards = source.test if split == "test" and source.test else source.train
        return cls(
            source=source,
            number=number,
            shards=shards,
            split=split,
            limit=limit,
            test_fraction=fraction,
            text_field=data.text_field,
            seed=seed,
        )

    def holds(self, content: str) -> bool:
        """Whether a row with this content is of the split. Equal rows fall on the same side."""
        if not self.source.test:
            is_test = uniform(f"{self.seed}|split|{content}") < self.test_fraction
            if is_test != (self.split == "test"):
                return False
        weight = self.source.spec.weight
        return self.split == "test" or uniform(f"{self.seed}|weight|{content}") < weight


def read_rows(batch: Mapping[str, Any], selection: Selection) -> Iterator[pa.Table]:
    """Rows of one shard that belong to the split, in order, as tables of `ROWS_SCHEMA`.

    Args:
        batch: a task's input: one number of a shard under ``shard``.
        selection: what is read.

    ``row_key`` tells rows apart: source, place and content. ``payload`` is JSON: a text, or
    [role, content] pairs; it is empty and ``reason`` says why if the row is malformed.
    """
    source, shard = selection.source, selection.shards[int(batch["shard"][0])]
    adapter = source.adapter(selection.text_field)
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(read_shard(shard, adapter, source.spec.lang)):
        place = f"{source.spec.key}|{shard.split}|{shard.ordinal}|{index}"
        entry = _entry(row, selection.number, place)
        if not selection.holds(entry["payload"] or entry["row_key"]):
            continue
        rows.append(entry)
        if len(rows) == _ROWS_PER_TABLE:
            yield pa.Table.from_pylist(rows, schema=ROWS_SCHEMA)
            rows = []
    yield pa.Table.from_pylist(rows, schema=ROWS_SCHEMA)


def _entry(row: ReadRow, number: int, place: str) -> dict[str, Any]:
    payload = json.dumps(row.example.messages or row.example.text) if row.example else ""
    return {
        "source": number,
        "where": row.where,
        "row_key": hashlib.blake2b(f"{place}|{payload}".encode(), digest_size=16).hexdigest(),
        "payload": payload,
        "reason": row.reason,
    }


def _test_fraction(train: int | None, test: int | None, data: DataSection) -> float:
    """Held-out share of a source without a test split: enough for `test` beside `train`."""
    if test == 0:
        return 0.0
    if test is not None and train:
        return max(data.test_fraction, test / (train + test))
    return data.test_fraction
