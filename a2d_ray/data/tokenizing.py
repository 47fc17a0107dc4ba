"""Tables of rows -> tables of documents with their costs. No Ray here.

Every entry that is dropped travels with the documents as an entry without tokens, so that counts
need no side channel: the same blocks give the same counts, whatever ran where and how often.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from a2d_ray.data.chat import ChatRenderer, Piece, encode_pieces
from a2d_ray.data.documents import Cutting, Document, conversation_documents, text_documents
from a2d_ray.data.hashing import stable_id
from a2d_ray.diffusion.layout import LayoutSpec, PackedRow, document_costs
from a2d_ray.models.tokenizers import load_tokenizer

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("where", pa.string()),
        ("is_new_row", pa.bool_()),
        ("is_malformed", pa.bool_()),
        ("reason", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("segment", pa.list_(pa.int32())),
        ("is_target", pa.list_(pa.bool_())),
        ("doc_id", pa.int64()),
        ("is_complete", pa.bool_()),
        ("cost", pa.int64()),
    ]
)
NOT_PACKABLE = "longer than data.tokens_per_row over all streams"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how rows become packs.

    Attributes:
        cutting: how rows become documents.
        layout: streams and blocks, for the costs.
        eos_tail: mdlm: room kept for EOS targets behind a finished answer; 0 otherwise.
        tokens_per_row: capacity of a pack over all streams.
        insert_eos: plain text ends with EOS.
        seed: of the order of the packs.
    """

    cutting: Cutting
    layout: LayoutSpec
    eos_tail: int
    tokens_per_row: int
    insert_eos: bool
    seed: int


@dataclass
class _Entries:
    """Columns of `DOCUMENTS_SCHEMA` in the making."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    documents: list[Document | None] = field(default_factory=list)

    def add(self, row: dict[str, Any], document: Document | None, **columns: Any) -> None:
        number = document.answer if document else 0
        self.documents.append(document)
        self.rows.append(
            {
                "source": row["source"],
                "where": row["where"],
                "is_new_row": False,
                "is_malformed": False,
                "reason": None,
                "doc_id": stable_id(row["row_key"], str(number)),
                "is_complete": document is not None and document.is_complete,
                **columns,
            }
        )


def tokenize_rows(rows: pa.Table, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> pa.Table:
    """Documents of a table of rows, with their costs; dropped ones as entries without tokens.

    Args:
        rows: `reading.ROWS_SCHEMA`.
        tokenizer: with or without a chat template.
        recipe: how rows become documents.

    Returns:
        `DOCUMENTS_SCHEMA`, in the order of the rows.
    """
    entries = _Entries()
    listed = rows.to_pylist()
    for row, results in zip(listed, _documents(listed, tokenizer, recipe), strict=True):
        for number, (document, reason) in enumerate(results):
            is_malformed = row["reason"] is not None
            entries.add(
                row, document, is_new_row=number == 0, is_malformed=is_malformed, reason=reason
            )
    return _documents_table(entries, recipe)


def tokenize_table(rows: pa.Table, model_path: str, recipe: Recipe) -> pa.Table:
    """`tokenize_rows` with the tokenizer of a checkpoint, loaded once per process."""
    return tokenize_rows(rows, _tokenizer(model_path), recipe)


_tokenizer = lru_cache(maxsize=2)(load_tokenizer)

_Results = list[tuple[Document | None, str | None]]


def _documents(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> Iterator[_Results]:
    """Per row, its documents and the reasons for those that were dropped; never empty."""
    rendered = _render(rows, ChatRenderer(tokenizer))
    pieces = [p for result in rendered if isinstance(result, list) for p in result]
    segments = iter(encode_pieces(pieces, tokenizer))
    eos_id = tokenizer.eos_token_id if recipe.insert_eos else None
    for row, result in zip(rows, rendered, strict=True):
        if isinstance(result, str):
            row["reason"] = result
            yield [(None, result)]
            continue
        ids = [next(segments) for _ in result]
        if result[0].is_answer:
            documents = list(text_documents(ids[0], eos_id, recipe.cutting.max_length))
            reasons: list[str] = []
        else:
            flags = [piece.is_answer for piece in result]
            documents, reasons = conversation_documents(ids, flags, recipe.cutting)
        results = [*((d, None) for d in documents), *((None, reason) for reason in reasons)]
        yield results or [(None, "no tokens")]


def _render(rows: Sequence[dict[str, Any]], renderer: ChatRenderer) -> list[list[Piece] | str]:
    """Pieces per row, or why there are none. A text is one piece that is all answer."""
    results: list[list[Piece] | str] = []
    for row in rows:
        if row["reason"] is not None:
            results.append(row["reason"])
            continue
        payload = json.loads(row["payload"])
        if isinstance(payload, str):
            results.append([Piece(payload, is_answer=True)])
            continue
        try:
            messages = [{"role": role, "content": content} for role, content in payload]
            results.append(renderer.render(messages))
        except ValueError as error:
            results.append(str(error))
    return results


def _documents_table(entries: _Entries, recipe: Recipe) -> pa.Table:
    documents = entries.documents
    lengths = np.array([d.num_tokens if d else 0 for d in documents], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    kept = [d for d in documents if d]
    segments = [s for d in kept for s in d.segments]
    sizes = np.fromiter(map(len, segments), np.int64)
    numbers = np.fromiter(chain.from_iterable(range(len(d.segments)) for d in kept), np.int32)
    flags = np.fromiter(chain.from_iterable(d.is_target for d in kept), np.bool_)
    tokens = {
        "ids": np.fromiter(chain.from_iterable(segments), np.int32, count=int(sizes.sum())),
        "segment": np.repeat(numbers, sizes),
        "is_target": np.repeat(flags, sizes),
    }
    costs = np.zeros(len(documents), dtype=np.int64)
    costs[lengths > 0] = _costs(tokens, lengths[lengths > 0], entries, recipe)
    for row, cost in zip(entries.rows, costs.tolist(), strict=True):
        if cost > recipe.tokens_per_row:
            row["reason"] = NOT_PACKABLE
    columns = {name: pa.ListArray.from_arrays(offsets, pa.array(v)) for name, v in tokens.items()}
    for name in DOCUMENTS_SCHEMA.names:
        if name not in (*tokens, "cost"):
            values = [row[name] for row in entries.rows]
            columns[name] = pa.array(values, DOCUMENTS_SCHEMA.field(name).type)
    columns["cost"] = pa.array(costs)
    return pa.table(columns).select(DOCUMENTS_SCHEMA.names).cast(DOCUMENTS_SCHEMA)


def _costs(
    tokens: dict[str, np.ndarray], lengths: np.ndarray, entries: _Entries, recipe: Recipe
) -> np.ndarray:
    """`document_costs` of all documents of a table at once."""
    if not lengths.size:
        return lengths
    kept = [row for row, d in zip(entries.rows, entries.documents, strict=True) if d]
    documents = PackedRow(
        ids_C=torch.from_numpy(tokens["ids"].astype(np.int64)),
        doc_C=torch.from_numpy(np.repeat(np.arange(lengths.size), lengths)),
        segment_C=torch.from_numpy(tokens["segment"].astype(np.int64)),
        is_target_C=torch.from_numpy(tokens["is_target"]),
        doc_id_D=torch.tensor([row["doc_id"] for row in kept]),
        is_complete_D=torch.tensor([row["is_complete"] for row in kept]),
    )
    return document_costs(documents, recipe.layout, eos_tail=recipe.eos_tail).numpy()
