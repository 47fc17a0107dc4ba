"""An index of all documents -> which of them are packed, in what order, into which packs. No Ray.

The plan needs no token, so one process makes it for a whole mixture. All that it does follows from
hashes of rows and documents: it does not matter which task tokenized what, or when.

    select (held out? duplicate? beyond a limit?) ─▶ shuffle (all sources together) ─▶ pack windows
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from a2d_ray.data.hashing import scramble
from a2d_ray.data.packing.best_fit import WINDOW_DOCUMENTS, pack

HELD_OUT = "equal to a held-out row"
DUPLICATE = "duplicate of another row"
OVER_LIMIT = "beyond data.max_rows or data.max_tokens"


@dataclass(frozen=True, kw_only=True)
class IndexLimits:
    """What `split_index` leaves out: duplicates, and what is beyond a cap of the data section."""

    deduplicate: bool = False
    max_rows: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Index:
    """Columns over N documents: ``file, place, is_test, source, row, content, copies, doc_id,
    cost, tokens, targets``, each a numpy array [N]; `files` names the files."""

    columns: dict[str, np.ndarray]
    files: tuple[str, ...]

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> "Index":
        """The index of the tables of `tokenizing.INDEX_SCHEMA`, without their reports."""
        kept = [table.filter(pa.compute.is_valid(table["place"])) for table in tables]
        whole = pa.concat_tables(kept).combine_chunks()
        names = [name for name in whole.column_names if name not in ("file", "report")]
        columns = {name: whole[name].to_numpy() for name in names}
        file = whole["file"].combine_chunks().dictionary_encode()
        if isinstance(file, pa.ChunkedArray):
            file = file.chunk(0)
        columns["file"] = file.indices.to_numpy()
        return cls(columns, tuple(file.dictionary.to_pylist()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def take(self, which: np.ndarray) -> "Index":
        """The documents that a mask or an array of places chooses."""
        return Index({name: values[which] for name, values in self.columns.items()}, self.files)


@dataclass(frozen=True)
class SplitPacks:
    """The packs of a split.

    Attributes:
        index: its documents, pack after pack.
        docs_per_pack: int64 [packs].
    """

    index: Index
    docs_per_pack: np.ndarray

    @property
    def num_packs(self) -> int:
        return int(self.docs_per_pack.size)

    def parts(self, packs_per_part: int) -> list[pa.Table]:
        """What the tasks that write parts need to know: one row each."""
        ends = np.concatenate([[0], np.cumsum(self.docs_per_pack)])
        tables = []
        for number, first in enumerate(range(0, self.num_packs, packs_per_part)):
            last = min(first + packs_per_part, self.num_packs)
            here = slice(ends[first], ends[last])
            columns: dict[str, Any] = {
                "part": [number],
                "first_pack": [first],
                "docs_per_pack": [self.docs_per_pack[first:last]],
                **{name: [self.index[name][here]] for name in ("file", "place", "doc_id")},
            }
            tables.append(pa.table(columns))
        return tables


def split_index(index: Index, limits: IndexLimits) -> tuple[Index, Index, Counter[tuple[int, str]]]:
    """The training and the held-out documents, and why rows were left out.

    Returns:
        Training documents, held-out documents, and counts of training rows by (source, reason).
    """
    dropped: Counter[tuple[int, str]] = Counter()
    is_test = index["is_test"]
    train = index.take(~is_test)
    test = index.take(is_test)
    train = _without(train, np.isin(train["content"], test["content"]), HELD_OUT, dropped)
    if limits.deduplicate:
        train = _without(train, _is_repeated(train), DUPLICATE, dropped)
        test = test.take(~_is_repeated(test))
    if limits.max_rows is not None or limits.max_tokens is not None:
        train = _without(train, _is_beyond(train, limits), OVER_LIMIT, dropped)
    return train, test, dropped


def make_plan(index: Index, capacity: int, seed: int, *, is_packed: bool = True) -> SplitPacks:
    """Packs of documents of all sources in a random order.

    A document of weight above 1 appears several times, each with an id, and so noise, of its own.

    Args:
        index: the documents of a split.
        capacity: tokens that a pack can hold over all streams.
        seed: of the order.
        is_packed: False: each document is a pack of its own.
    """
    repeated = _with_copies(index)
    order = np.argsort(scramble(repeated["doc_id"], seed), kind="stable")
    shuffled = repeated.take(order)
    if not is_packed:
        return SplitPacks(shuffled, np.ones(order.size, dtype=np.int64))
    costs = shuffled["cost"].tolist()
    places: list[int] = []
    docs_per_pack: list[int] = []
    for start in range(0, len(costs), WINDOW_DOCUMENTS):
        for indices in pack(costs[start : start + WINDOW_DOCUMENTS], capacity):
            places += [start + i for i in indices]
            docs_per_pack.append(len(indices))
    packed = shuffled.take(np.array(places, dtype=np.int64))
    return SplitPacks(packed, np.array(docs_per_pack, dtype=np.int64))


def _with_copies(index: Index) -> Index:
    copies = index["copies"].astype(np.int64)
    repeated = index.take(np.repeat(np.arange(copies.size), copies))
    ends = np.cumsum(copies)
    number = np.arange(repeated["doc_id"].size) - np.repeat(ends - copies, copies)
    ids = repeated["doc_id"].copy()
    again = number > 0
    ids[again] = (scramble(ids[again] ^ number[again], 1) >> np.uint64(1)).astype(np.int64)
    return Index({**repeated.columns, "doc_id": ids}, index.files)


def _is_repeated(index: Index) -> np.ndarray:
    """Documents of rows whose content an earlier row has: earlier in the mixture's order of
    sources, then by the rows' hashes."""
    order = np.lexsort((index["row"], index["source"], index["content"]))
    content = index["content"][order]
    row = index["row"][order]
    starts = np.concatenate([[True], content[1:] != content[:-1]])[: order.size]
    first_row = row[np.maximum.accumulate(np.where(starts, np.arange(order.size), 0))]
    is_repeated = np.empty(order.size, dtype=bool)
    is_repeated[order] = row != first_row
    return is_repeated


def _is_beyond(index: Index, limits: IndexLimits) -> np.ndarray:
    """Documents of rows beyond the limits, rows being taken in a random order over all sources."""
    rows, inverse = np.unique(index["row"], return_inverse=True)  # row ids are hashes
    copies = index["copies"].astype(np.int64)
    tokens = np.zeros(rows.size, dtype=np.int64)
    np.add.at(tokens, inverse, index["tokens"] * copies)
    times = np.zeros(rows.size, dtype=np.int64)
    times[inverse] = copies
    is_beyond = np.zeros(rows.size, dtype=bool)
    if limits.max_rows is not None:
        is_beyond |= np.cumsum(times) > limits.max_rows
    if limits.max_tokens is not None:
        is_beyond |= np.cumsum(tokens) > limits.max_tokens
    return is_beyond[inverse]


def _without(
    index: Index, unwanted: np.ndarray, reason: str, dropped: Counter[tuple[int, str]]
) -> Index:
    """The other documents; counts the rows of the unwanted ones."""
    gone = index.take(unwanted)
    _, first = np.unique(gone["row"], return_index=True)
    dropped.update((int(source), reason) for source in gone["source"][first])
    return index.take(~unwanted)


def read_reports(tables: Sequence[pa.Table]) -> list[dict[str, Any]]:
    """The reports in tables of `tokenizing.INDEX_SCHEMA`."""
    texts = (text for table in tables for text in table["report"].drop_null().to_pylist())
    return [json.loads(text) for text in texts]
