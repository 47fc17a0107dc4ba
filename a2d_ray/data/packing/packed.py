"""Packed sets on disk: Parquet parts in row groups of a fixed size, and a manifest. No Ray here.

    <packed_path>/<fingerprint>/manifest.json
                                {train,test}/part-00000.parquet ...

A set is written beside its place and renamed, so what has a name is complete.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from a2d_ray.data.sources.mixture import Split

if TYPE_CHECKING:  # tasks that read packed rows start faster without torch
    import torch

    from a2d_ray.diffusion.layout import PackedRow

ROWS_PER_GROUP = 64
ROWS_PER_PART = 16 * ROWS_PER_GROUP
MANIFEST = "manifest.json"
PACKED_SCHEMA = pa.schema(
    [
        ("pack_id", pa.int64()),
        ("ids", pa.list_(pa.int32())),
        ("doc", pa.list_(pa.int32())),
        ("segment", pa.list_(pa.int32())),
        ("is_target", pa.list_(pa.bool_())),
        ("doc_id", pa.list_(pa.int64())),
        ("is_complete", pa.list_(pa.bool_())),
    ]
)


@dataclass(frozen=True)
class PackedSet:
    """A finished packed set.

    Attributes:
        path: its directory.
        manifest: what it was made from, counts, drop reasons, utilisation.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "PackedSet":
        """The set in a directory.

        Raises:
            ValueError: no packed set there.
        """
        directory = Path(path).expanduser().absolute()
        manifest = directory / MANIFEST
        if not manifest.is_file():
            raise ValueError(f"{directory} is no packed set: it has no {MANIFEST}")
        return cls(directory, json.loads(manifest.read_text()))

    @property
    def fingerprint(self) -> str:
        """Changes when rows, tokenizer or options change."""
        return str(self.manifest["fingerprint"])

    def num_rows(self, split: Split) -> int:
        """Packed rows of a split."""
        return int(self.manifest["splits"][split]["rows"])

    def table(self, split: Split, indices: Sequence[int] | np.ndarray) -> pa.Table:
        """Rows of a split in the order of `indices`, in `PACKED_SCHEMA`.

        Rows that follow each other should lie in few row groups: a few are kept in memory.

        Raises:
            IndexError: an index outside 0..num_rows-1.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        total = self.num_rows(split)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < total):
            raise IndexError(f"{split} row {wanted.max()} of {total} in {self.path}")
        group, inside = np.divmod(wanted, ROWS_PER_GROUP)
        needed, which = np.unique(group, return_inverse=True)
        tables = [_row_group(str(self.path / split), int(g)) for g in needed]
        starts = np.cumsum([0, *(table.num_rows for table in tables)])[:-1]
        if not tables:
            return PACKED_SCHEMA.empty_table()
        return pa.concat_tables(tables).take(starts[which] + inside)

    def read_rows(self, split: Split, indices: Sequence[int] | np.ndarray) -> list["PackedRow"]:
        """Rows of a split as tensors, in the order of `indices`."""
        return to_packed_rows(self.table(split, indices))


def part_name(number: int) -> str:
    """File name of a part of a split."""
    return f"part-{number:05d}.parquet"


@lru_cache(maxsize=8)
def _row_group(directory: str, group: int) -> pa.Table:
    part, inside = divmod(group, ROWS_PER_PART // ROWS_PER_GROUP)
    with pq.ParquetFile(Path(directory) / part_name(part)) as file:
        return file.read_row_group(inside).combine_chunks()


def to_packed_rows(batch: pa.Table) -> list["PackedRow"]:
    """Packed rows of a batch, as tensors.

    Args:
        batch: `PACKED_SCHEMA` columns, as ``iter_batches(batch_format="pyarrow")`` yields them:
            lists stay flat there, so nothing is copied before the tensors are made.
    """
    import torch

    from a2d_ray.diffusion.layout import PackedRow

    columns = {name: _lists(batch[name]) for name in PACKED_SCHEMA.names[1:]}
    return [
        PackedRow(
            ids_C=_long(columns["ids"][r]),
            doc_C=_long(columns["doc"][r]),
            segment_C=_long(columns["segment"][r]),
            is_target_C=torch.from_numpy(columns["is_target"][r].copy()),
            doc_id_D=_long(columns["doc_id"][r]),
            is_complete_D=torch.from_numpy(columns["is_complete"][r].copy()),
        )
        for r in range(batch.num_rows)
    ]


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    return [values for chunk in column.chunks for values in _split_lists(chunk)]


def _split_lists(chunk: pa.ListArray) -> Iterator[np.ndarray]:
    values = chunk.values.to_numpy(zero_copy_only=False)
    offsets = chunk.offsets.to_numpy()
    return (values[a:b] for a, b in itertools.pairwise(offsets))


def _long(values: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(values.astype(np.int64))


def read_positions(plan: pa.Table, packed: PackedSet, start_row: int, seed: int) -> pa.Table:
    """Training rows at the positions start_row + `plan`'s id, with a column ``position``."""
    positions = plan["id"].to_numpy() + start_row
    key = order_seed(packed.fingerprint, seed)
    indices = training_order(packed.num_rows("train"), key, positions)
    return packed.table("train", indices).append_column("position", pa.array(positions))


def training_order(num_rows: int, fingerprint_seed: int, positions: np.ndarray) -> np.ndarray:
    """Row indices at global positions: epoch p // N, place p % N in that epoch's permutation.

    Row groups are permuted, then the rows inside each, so positions that follow each other read
    few row groups. A pure function: Philox raw streams do not change between numpy versions.

    Args:
        num_rows: N, rows of the split.
        fingerprint_seed: `order_seed`.
        positions: int64, >= 0.

    Returns:
        int64, the shape of `positions`.
    """
    epochs, places = np.divmod(positions, num_rows)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        is_here = epochs == epoch
        rows[is_here] = _places_in_epoch(num_rows, fingerprint_seed, int(epoch), places[is_here])
    return rows


def order_seed(fingerprint: str, seed: int) -> int:
    """The 64-bit key of a run's order."""
    return (int(fingerprint[:16], 16) + seed * 0x9E3779B97F4A7C15) % 2**64


def _places_in_epoch(num_rows: int, key: int, epoch: int, places: np.ndarray) -> np.ndarray:
    num_groups = -(-num_rows // ROWS_PER_GROUP)
    groups = _permutation(num_groups, key, epoch, 0)
    sizes = np.minimum(num_rows - groups * ROWS_PER_GROUP, ROWS_PER_GROUP)
    ends = np.cumsum(sizes)
    slots = np.searchsorted(ends, places, side="right")
    inside = places - (ends - sizes)[slots]
    rows = np.empty_like(places)
    for slot in np.unique(slots):
        is_here = slots == slot
        group = int(groups[slot])
        order = _permutation(int(sizes[slot]), key, epoch, group + 1)
        rows[is_here] = group * ROWS_PER_GROUP + order[inside[is_here]]
    return rows


def _permutation(size: int, key: int, epoch: int, stream: int) -> np.ndarray:
    philox = np.random.Philox(key=key, counter=[0, 0, stream, epoch])
    return np.argsort(philox.random_raw(size), kind="stable")
