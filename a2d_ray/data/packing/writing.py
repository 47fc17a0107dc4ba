"""Planned packs -> parts of a packed set, from the files of tokenized documents. No Ray here."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from a2d_ray.data.packing.packed import PACKED_SCHEMA, ROWS_PER_GROUP, part_name


def write_part(
    plan: Mapping[str, Any], *, documents: Path, files: tuple[str, ...], directory: Path
) -> int:
    """Writes one part of a split; returns its number of packed rows.

    Args:
        plan: a row of `planning.Plan.parts`.
        documents: folder of the document files; each is mapped, so that only the documents that
            are needed are read.
        files: their names, by number.
        directory: of the split; made if it is not there.

    Raises:
        OSError: the part cannot be written, for example because the disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = _gather(np.asarray(plan["file"]), np.asarray(plan["place"]), documents, files)
    table = packed_table(found, plan["doc_id"], plan["docs_per_pack"], int(plan["first_pack"]))
    path = directory / part_name(int(plan["part"]))
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    pq.write_table(table, beside, row_group_size=ROWS_PER_GROUP, compression="zstd")
    os.replace(beside, path)
    return int(table.num_rows)


def packed_table(
    documents: pa.Table, doc_ids: np.ndarray, docs_per_pack: np.ndarray, first_pack: int
) -> pa.Table:
    """`PACKED_SCHEMA` of documents that lie pack after pack.

    Args:
        documents: `tokenizing.DOCUMENTS_SCHEMA`, D documents, in one chunk.
        doc_ids: their ids, int64 [D].
        docs_per_pack: int64 [packs].
        first_pack: ``pack_id`` of the first pack.
    """
    docs_per_pack = np.asarray(docs_per_pack, dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(docs_per_pack)])
    lengths, token_ends = _sizes(documents["ids"])
    segments, _ = _sizes(documents["lengths"])
    within_pack = np.arange(lengths.size) - np.repeat(ends[:-1], docs_per_pack)
    segment_lengths = _flat(documents["lengths"])
    number = np.arange(segment_lengths.size) - np.repeat(np.cumsum(segments) - segments, segments)
    by_token = token_ends[ends]
    columns = {
        "pack_id": pa.array(np.arange(first_pack, first_pack + docs_per_pack.size)),
        "ids": _lists(by_token, _flat(documents["ids"])),
        "doc": _lists(by_token, np.repeat(within_pack, lengths)),
        "segment": _lists(by_token, np.repeat(number, segment_lengths)),
        "is_target": _lists(by_token, np.repeat(_flat(documents["targets"]), segment_lengths)),
        "doc_id": _lists(ends, np.asarray(doc_ids, dtype=np.int64)),
        "is_complete": _lists(ends, documents["is_complete"].to_numpy()),
    }
    return pa.table(columns).select(PACKED_SCHEMA.names).cast(PACKED_SCHEMA).combine_chunks()


def _gather(file: np.ndarray, place: np.ndarray, folder: Path, files: tuple[str, ...]) -> pa.Table:
    """The documents at these places of these files, in their order."""
    order = np.lexsort((place, file))
    tables = []
    for number in np.unique(file):
        wanted = place[order][file[order] == number]
        with pa.memory_map(os.fspath(folder / files[number])) as source:
            whole = pa.ipc.open_file(source).read_all()
            tables.append(whole.take(pa.array(wanted)))
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return pa.concat_tables(tables).combine_chunks().take(pa.array(back)).combine_chunks()


def _sizes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the lists, and where each starts and the last ends."""
    lengths = pa.compute.list_value_length(column).to_numpy().astype(np.int64)
    return lengths, np.concatenate([[0], np.cumsum(lengths)])


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    flat: np.ndarray = pa.compute.list_flatten(column).to_numpy(zero_copy_only=False)
    return flat


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
