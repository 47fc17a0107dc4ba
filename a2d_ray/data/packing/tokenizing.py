"""Tables of rows -> documents on disk, an index of them, and a report. No Ray, no torch here.

The tokens stay in a file beside the set that is being made; the index (about 60 bytes a document)
goes to the driver, which plans the packs from it.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from a2d_ray.data.chat import ChatRenderer, SegmentText, encode_pieces, is_read
from a2d_ray.data.hashing import stable_id
from a2d_ray.data.literals import LiteralSpecials
from a2d_ray.data.packing.costs import Streams
from a2d_ray.data.packing.documents import Cutting, Document, conversation_documents, text_documents
from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.reading import NOT_READ, load_payload
from a2d_ray.data.thoughts import THOUGHT_KEY, apart
from a2d_ray.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("lengths", pa.list_(pa.int32())),  # of the segments
        ("targets", pa.list_(pa.bool_())),  # whether a segment is learned
        ("is_complete", pa.bool_()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("place", pa.int32()),  # of the document in its file
        ("is_test", pa.bool_()),
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("content", pa.int64()),
        ("copies", pa.int32()),
        ("doc_id", pa.int64()),
        ("cost", pa.int64()),
        ("tokens", pa.int64()),
        ("targets", pa.int64()),
        ("report", pa.string()),  # of the whole table; such an entry is no document
    ]
)
NOT_PACKABLE = "longer than data.tokens_per_row over all streams"
MAX_OFFENDERS = 5
_NO_THOUGHTS = (
    f"{NOT_READ}reasoning of answers (the prompt says not to think; "
    "data.template_options={enable_thinking: true} changes that where the template reads it)"
)
LONGEST_TEXT = 2**17  # characters that are tokenized at once; longer texts are cut at line ends


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how rows become packs.

    Attributes:
        cutting: how conversations become documents.
        streams: what a document costs.
        text_length: tokens that plain text is cut into.
        tokens_per_row: capacity of a pack over all streams.
        insert_eos: plain text ends with EOS.
        seed: of the order of the documents.
        template_options: what the chat template reads besides the messages.
    """

    cutting: Cutting
    streams: Streams
    text_length: int
    tokens_per_row: int
    insert_eos: bool
    seed: int
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Found:
    """Documents of a table, and what became of its rows."""

    documents: list[Document] = field(default_factory=list)
    index: list[dict[str, Any]] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    offenders: list[list[Any]] = field(default_factory=list)
    tallies: list[list[Any]] = field(default_factory=list)

    def add_row(self, row: dict[str, Any], is_malformed: bool, reason: str | None) -> None:
        self.rows[f"{row['split']}|{row['source']}|rows"] += 1
        if is_malformed:
            self.rows[f"{row['split']}|{row['source']}|malformed"] += 1
            place = [row["source"], row["ordinal"], row["number"]]
            self.offenders.append([*place, f"{row['shard']}:{row['number']}", reason])

    def drop(self, row: dict[str, Any], reason: str) -> None:
        self.dropped[f"{row['split']}|{row['source']}|{reason}"] += 1

    def report(self) -> str:
        return json.dumps(
            {
                "rows": self.rows,
                "dropped": self.dropped,
                "offenders": sorted(self.offenders)[:MAX_OFFENDERS],
                "tallies": self.tallies,
            }
        )


def tokenize_rows(
    rows: pa.Table, tokenizer: "PreTrainedTokenizerBase", recipe: Recipe
) -> tuple[pa.Table, pa.Table]:
    """Documents of a table of rows, and their index.

    Args:
        rows: `reading.ROWS_SCHEMA`.
        tokenizer: with or without a chat template.
        recipe: how rows become documents.

    Returns:
        `DOCUMENTS_SCHEMA`, in the order of the rows, and `INDEX_SCHEMA` of the same documents,
        behind which comes a report: rows and malformed rows, and reasons, by split and source.
    """
    found = _Found()
    listed = []
    for row in rows.to_pylist():
        if row["tally"] is None:
            listed.append(row)
        else:
            found.tallies.append([row["source"], json.loads(row["tally"])])
    texts = _Texts(tokenizer, recipe.template_options)
    for row, results in zip(listed, _documents(listed, texts, recipe), strict=True):
        found.add_row(row, row["is_malformed"], row["reason"])
        for result in results:
            if isinstance(result, str):
                found.drop(row, result)
            else:
                _add_document(found, row, result, recipe)
    found.tallies += [[source, tally] for source, tally in sorted(texts.unread.items())]
    return _documents_table(found.documents), _index_table(found)


def tokenize_table(rows: pa.Table, *, model_path: str, recipe: Recipe, directory: Path) -> pa.Table:
    """The index of the documents of a table of rows; their tokens go to a file in `directory`.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    documents, index = tokenize_rows(rows, _tokenizer(model_path), recipe)
    name = f"{uuid.uuid4().hex}.arrow"  # a task may run twice: only one of its files is indexed
    path = os.fspath(directory / name)
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, DOCUMENTS_SCHEMA) as writer:
        writer.write_table(documents.combine_chunks())
    return index.set_column(0, "file", pa.array([name] * index.num_rows))


_tokenizer = lru_cache(maxsize=2)(load_tokenizer)


def _add_document(found: _Found, row: dict[str, Any], document: Document, recipe: Recipe) -> None:
    cost = recipe.streams.cost(document)
    if cost > recipe.tokens_per_row:
        found.drop(row, NOT_PACKABLE)
        return
    learned = zip(document.segments, document.is_target, strict=True)
    found.index.append(
        {
            "place": len(found.documents),
            "is_test": row["split"] == "test",
            "source": row["source"],
            "row": row["row"],
            "content": row["content"],
            "copies": row["copies"],
            "doc_id": stable_id(str(row["row"]), str(document.answer)),
            "cost": cost,
            "tokens": document.num_tokens,
            "targets": sum(len(segment) for segment, is_target in learned if is_target),
        }
    )
    found.documents.append(document)


def _documents(
    rows: Sequence[dict[str, Any]], texts: "_Texts", recipe: Recipe
) -> Iterator[list[Document | str]]:
    """Per row, its documents and the reasons for those that were dropped; never empty."""
    tokenizer, literals = texts.tokenizer, texts.literals
    rendered = [texts.of(row) for row in rows]
    pieces = [p for result in rendered if isinstance(result, list) for p in result]
    encoded = encode_pieces(pieces, tokenizer)
    for number, piece in enumerate(pieces):
        if literals.is_hidden_in(piece.text):
            encoded[number] = literals.encode(piece.text)
    segments = iter(encoded)
    eos_id = tokenizer.eos_token_id if recipe.insert_eos else None
    for result in rendered:
        if isinstance(result, str):
            yield [result]
            continue
        ids = [next(segments) for _ in result]
        if result[0].is_answer:
            text = list(chain.from_iterable(ids))
            documents = list(text_documents(text, eos_id, recipe.text_length))
            reasons: list[str] = []
        else:
            flags = [piece.is_answer for piece in result]
            unlearned = {i for i, piece in enumerate(result) if not piece.is_learned}
            documents, reasons = conversation_documents(
                ids, flags, recipe.cutting, unlearned=unlearned
            )
        yield [*documents, *reasons] or ["no tokens"]


class _Texts:
    """Rows as pieces of text; counts the thoughts that the template has no room for.

    Special tokens that a row spells out stay text, as in prompts: a document can neither hold the
    mask token nor end a turn from within.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.literals = LiteralSpecials(tokenizer)
        self.unread: dict[int, Counter[str]] = {}  # by source
        self._options = options
        self._renderers = {"": ChatRenderer(tokenizer, options)}  # by tools

    def of(self, row: dict[str, Any]) -> list[SegmentText] | str:
        """The pieces of a row, or why there are none. A text is pieces that are all answers."""
        if row["reason"] is not None:
            return str(row["reason"])
        example = load_payload(row["payload"])
        if not example.messages:
            texts = map(self.literals.hide_in, _cut_text(example.text))
            return [SegmentText(text, is_answer=True) for text in texts]
        try:
            return self._conversation(row, example)
        except ValueError as error:
            row["reason"] = str(error)
            row["is_malformed"] = True
            return str(error)

    def _conversation(self, row: dict[str, Any], example: Example) -> list[SegmentText]:
        renderer = self._renderer(example.tools)
        messages = [apart({"role": r, "content": content}) for r, content in example.messages]
        pieces = renderer.render(self.literals.hide(messages))
        if renderer.drops_thoughts and any(THOUGHT_KEY in message for message in messages):
            self.unread.setdefault(row["source"], Counter())[_NO_THOUGHTS] += 1
        answers = [i for i, (role, _) in enumerate(example.messages) if role == "assistant"]
        for number, place in enumerate(answers):  # stretch, answer, stretch, answer, ...
            if place in example.unlearned:
                at = 2 * number + 1
                pieces[at] = replace(pieces[at], is_learned=False)
        return pieces

    def _renderer(self, tools: str) -> ChatRenderer:
        if tools not in self._renderers:
            if not is_read("tools", self.tokenizer):
                raise ValueError("the row has tools, which the chat template does not read")
            shown = {"tools": json.loads(self.literals.hide_in(tools))}
            self._renderers[tools] = ChatRenderer(self.tokenizer, {**self._options, **shown})
        return self._renderers[tools]


def _cut_text(text: str) -> Iterator[str]:
    """A text in pieces of bounded length, cut behind a line end where there is one."""
    start = 0
    while len(text) - start > LONGEST_TEXT:
        end = text.rfind("\n", start, start + LONGEST_TEXT) + 1 or start + LONGEST_TEXT
        yield text[start:end]
        start = end
    yield text[start:]


def _documents_table(documents: Sequence[Document]) -> pa.Table:
    segments = [segment for document in documents for segment in document.segments]
    lengths = np.fromiter(map(len, segments), np.int32, count=len(segments))
    per_document = np.fromiter((len(d.segments) for d in documents), np.int64, len(documents))
    ends = np.concatenate([[0], np.cumsum(per_document)])
    token_ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.fromiter(chain.from_iterable(segments), np.int32, count=int(token_ends[-1]))
    flags = [flag for document in documents for flag in document.is_target]
    lists = (token_ends[ends], ids), (ends, lengths), (ends, np.array(flags, dtype=np.bool_))
    columns = [
        pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(values))
        for offsets, values in lists
    ]
    columns.append(pa.array([document.is_complete for document in documents], pa.bool_()))
    return pa.Table.from_arrays(columns, schema=DOCUMENTS_SCHEMA)


def _index_table(found: _Found) -> pa.Table:
    entries = [*found.index, {"report": found.report()}]
    return pa.Table.from_pylist(entries, schema=INDEX_SCHEMA)


def num_documents(index: pa.Table) -> int:
    """Documents of a table of INDEX_SCHEMA; its reports are none."""
    return int(index["report"].null_count)
