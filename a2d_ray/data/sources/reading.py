"""Which rows of a source belong to which split, and how a task reads them. No Ray here."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from a2d_ray.config import DataSection
from a2d_ray.data.hashing import stable_id, uniform_hash
from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.decontamination import CONTAMINATED, overlaps
from a2d_ray.data.sources.mixture import SPLITS, Split
from a2d_ray.data.sources.shards import ReadRow, Shape, Shard, Source, read_shard

ROWS_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("split", pa.string()),
        ("shard", pa.string()),  # path, for people
        ("ordinal", pa.int32()),  # of the shard within its source
        ("number", pa.int64()),  # of the row within its shard
        ("row", pa.int64()),
        ("content", pa.int64()),
        ("copies", pa.int32()),
        ("payload", pa.string()),
        ("reason", pa.string()),
        ("is_malformed", pa.bool_()),
        ("tally", pa.string()),
    ]
)
NOT_READ = "not read: "
"""What starts an entry of a tally: text of a row that nothing was made of."""
_ROWS_PER_TABLE = 256
_BYTES_PER_TABLE = 2**20


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one task reads.

    Attributes:
        source: where the rows come from, and `number` its place in the mixture.
        shards: read one after the other.
        split: of all rows; None: `test_fraction` of them are held out by a hash.
        limits: good rows at most, by split; a split that is missing has no limit.
        test_fraction: share held out, 0..1.
        shape: how rows become examples.
        seed: of the hash.
        ngrams: by length, the hashes of evaluation n-grams (`decontamination`).
    """

    source: Source
    number: int
    shards: tuple[Shard, ...]
    split: Split | None
    limits: dict[Split, int]
    test_fraction: float
    shape: Shape
    seed: int
    ngrams: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def split_of(self, content: int) -> Split:
        """The split of a row with this content. Equal rows fall on the same side."""
        if self.split is not None:
            return self.split
        is_test = uniform_hash(f"{self.seed}|split|{content}") < self.test_fraction
        return "test" if is_test else "train"

    def copies(self, content: int, split: Split) -> int:
        """How often an epoch takes a row: its weight, rounded up or down by a hash."""
        if split == "test":
            return 1
        whole, part = divmod(self.source.spec.weight, 1)
        return int(whole) + (uniform_hash(f"{self.seed}|weight|{content}") < part)


def reading_units(
    sources: list[Source], data: DataSection, ngrams: dict[int, np.ndarray]
) -> list[Unit]:
    """What the tasks of a job read: a shard each, or, where a limit counts rows, a source."""
    return [unit for n, source in enumerate(sources) for unit in _units(n, source, data, ngrams)]


def read_unit(unit: Unit) -> Iterator[pa.Table]:
    """Rows of a unit in order, as tables of `ROWS_SCHEMA`, and at last its tally.

    ``payload`` is JSON, which `load_payload` reads; it is empty and ``reason`` says why if the row
    is dropped. ``row`` tells rows apart (source, place and content), ``content`` tells
    different contents apart.
    """
    reader = _Reader(unit)
    rows: list[dict[str, Any]] = []
    size = 0
    for shard in unit.shards:
        for row in read_shard(shard, unit.source.spec, unit.shape):
            entry = reader.entry(shard, row)
            if entry is not None:
                rows.append(entry)
                size += len(entry["payload"])
            if len(rows) >= _ROWS_PER_TABLE or size >= _BYTES_PER_TABLE:
                yield pa.Table.from_pylist(rows, schema=ROWS_SCHEMA)
                rows = []
                size = 0
            if reader.is_full:
                break
        if reader.is_full:
            break
    tally = json.dumps(reader.tally, sort_keys=True)
    rows.append({"source": unit.number, "tally": tally})
    yield pa.Table.from_pylist(rows, schema=ROWS_SCHEMA)


class _Reader:
    """Decides about the rows of a unit, and counts."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.taken: Counter[Split] = Counter()
        # Rows by language criterion, those of others, and those with text that was not read.
        self.tally: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether every split has all the rows that it may take."""
        splits = SPLITS if self.unit.split is None else (self.unit.split,)
        limits = self.unit.limits
        return all(split in limits and self.taken[split] >= limits[split] for split in splits)

    def entry(self, shard: Shard, row: ReadRow) -> dict[str, Any] | None:
        """The row as an entry of `ROWS_SCHEMA`, or None if it is not taken."""
        if row.language_by:
            self.tally[f"language by {row.language_by}"] += 1
        if row.is_other_language:
            self.tally["of another language"] += 1
            return None
        payload = "" if row.example is None else _dump(row.example)
        place = f"{self.unit.source.spec.key}|{shard.split}|{shard.ordinal}|{row.number}"
        content = stable_id(payload or place)
        split = self.unit.split_of(content)
        copies = self.unit.copies(content, split)
        limit = self.unit.limits.get(split)
        if copies == 0 or (limit is not None and self.taken[split] >= limit):
            return None
        reason = row.reason or self._overlap(row.example, split)
        self.taken[split] += reason is None
        self.tally.update(f"{NOT_READ}{what}" for what in row.unread)
        return {
            "source": self.unit.number,
            "split": split,
            "shard": shard.path,
            "ordinal": shard.ordinal,
            "number": row.number,
            "row": stable_id(place, payload),
            "content": content,
            "copies": copies,
            "payload": "" if reason else payload,
            "reason": reason,
            "is_malformed": row.reason is not None,
        }

    def _overlap(self, example: Example | None, split: Split) -> str | None:
        if example is None or split == "test" or not overlaps(example, self.unit.ngrams):
            return None
        return CONTAMINATED


def _dump(example: Example) -> str:
    """A text or [role, content] pairs; with tools or answers that are not learned, an object."""
    content: Any = example.messages or example.text
    if example.tools or example.unlearned:
        content = {"messages": content, "unlearned": example.unlearned, "tools": example.tools}
    return json.dumps(content, ensure_ascii=False)


def load_payload(payload: str) -> Example:
    """The example that a payload of `read_unit` stands for."""
    content = json.loads(payload)
    if isinstance(content, str):
        return Example(text=content)
    if isinstance(content, list):
        content = {"messages": content}
    return Example(
        messages=tuple((role, text) for role, text in content["messages"]),
        unlearned=tuple(content.get("unlearned", ())),
        tools=content.get("tools", ""),
    )


def _units(
    number: int, source: Source, data: DataSection, ngrams: dict[int, np.ndarray]
) -> Iterator[Unit]:
    spec = source.spec
    limits: dict[Split, int] = {}
    if spec.train is not None:
        limits["train"] = spec.train
    if spec.test is not None:
        limits["test"] = spec.test
    fraction = 0.0 if source.test else _test_fraction(spec.train, spec.test, data)
    groups: list[tuple[Split | None, tuple[Shard, ...]]] = [("train", source.train)]
    if source.test:
        groups.append(("test", source.test))
    elif fraction:
        groups = [(None, source.train)]
    for split, shards in groups:
        if split is not None and limits.get(split) == 0:
            continue
        is_counted = bool(limits) if split is None else split in limits
        for part in [shards] if is_counted else [(shard,) for shard in shards]:
            yield Unit(
                source=source,
                number=number,
                shards=part,
                split=split,
                limits=limits,
                test_fraction=fraction,
                shape=Shape.of(data),
                seed=data.seed,
                ngrams=ngrams,
            )


def _test_fraction(train: int | None, test: int | None, data: DataSection) -> float:
    """Held-out share of a source without a test split: enough for `test` beside `train`."""
    if test == 0:
        return 0.0
    if test is not None and train:
        return max(data.test_fraction, test / (train + test))
    return data.test_fraction
