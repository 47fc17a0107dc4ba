"""The token layout of packed rows: which copies of which tokens exist, and where they sit.

Every token carries ``doc, block, stream, position``. Stream 0 is the clean copy x0; streams
1..views are noised copies. Positions restart per document and are shared by the streams, so a
noised token has the rotary position of the token that it replaces. One predicate over these
integers (`a2d_ray.diffusion.masks`) is all that attention needs.

What carries no loss is not laid out: noised copies exist only for blocks that hold a target, and
the clean copy ends before the last of these blocks, since nobody attends to it (where the AR
mode's logits are read, it ends with the last target).

Source: BD3LM (arXiv 2503.09573) for the two streams; packing and the omissions are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from a2d_ray.diffusion.runs import index_in_run, run_index
from a2d_ray.diffusion.tensors import Tensors

PAD_DOC = -1


@dataclass(frozen=True, kw_only=True)
class LayoutSpec:
    """How documents become streams and blocks.

    Attributes:
        objective: ``mdlm`` (one noised block per document, no clean stream) or ``bd3lm``.
        block_size: tokens per block (bd3lm), where a document has no size of its own.
        block_grid: ``segment``: blocks restart at each segment; ``absolute``: from the document's
            first token; ``prompt_end``: so that a block starts at the first target.
        views: complementary noised copies, 1 or 2.
        eos_id: id that fills an answer's last block (bd3lm) or follows it (mdlm).
        pad_id: id of padding, never attended by a document.
        causal_clean: clean tokens see only earlier clean tokens (`clean_attention: causal`).
        right_shift: the logit at i-1 predicts token i, so that noised blocks without a target are
            needed too. Not with ``segment``, where an answer's EOS fill lies between.
        ar_targets: clean targets are read from their clean predecessor too (causal_clean): by an AR
            loss, as what drafts learn, or to compare drafts with.
    """

    objective: Literal["mdlm", "bd3lm"]
    block_size: int = 32
    block_grid: Literal["segment", "absolute", "prompt_end"] = "segment"
    views: int = 1
    eos_id: int = 0
    pad_id: int = 0
    causal_clean: bool = False
    right_shift: bool = False
    ar_targets: bool = False

    def __post_init__(self) -> None:
        if self.right_shift and self.objective == "bd3lm" and self.block_grid == "segment":
            raise ValueError("right_shift needs block_grid absolute or prompt_end")
        if self.ar_targets and not (self.causal_clean and self.objective == "bd3lm"):
            raise ValueError("ar_targets needs bd3lm with causal_clean")


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One packed row: C tokens of D whole documents, one after the other.

    Attributes:
        ids_C: clean token ids, int64.
        doc_C: document index within the row, 0..D-1, ascending.
        segment_C: segment index within the document, ascending (an answer or a stretch between).
        is_target_C: tokens that are to be learned, bool.
        doc_id_D: stable document ids, int64 (the counter of the noise).
        is_complete_D: whether the document's last answer is whole, so that it is taught to stop.
    """

    ids_C: Tensor
    doc_C: Tensor
    segment_C: Tensor
    is_target_C: Tensor
    doc_id_D: Tensor
    is_complete_D: Tensor


@dataclass(frozen=True, kw_only=True)
class Layout(Tensors):
    """The streams of R packed rows, padded to T tokens. All tensors are [R, T].

    Attributes:
        ids_RT: clean ids x0 in every stream (noise is applied by the objective), int64.
        doc_RT: document index within the row; PAD_DOC for padding.
        doc_id_RT: stable document id.
        block_RT: block index within the document.
        offset_RT: index of the token within its block.
        stream_RT: 0 clean, 1..views noised.
        position_RT: index within the document (rotary position).
        is_target_RT: True where a noised token is to be predicted.
        is_ar_target_RT: True where a clean token is predicted from the one before it.
    """

    ids_RT: Tensor
    doc_RT: Tensor
    doc_id_RT: Tensor
    block_RT: Tensor
    offset_RT: Tensor
    stream_RT: Tensor
    position_RT: Tensor
    is_target_RT: Tensor
    is_ar_target_RT: Tensor

    @property
    def num_targets(self) -> Tensor:
        """Target tokens summed over the views: the denominator of the loss. Scalar int64."""
        return self.is_target_RT.sum()


def build_layout(
    rows: Sequence[PackedRow],
    spec: LayoutSpec,
    *,
    eos_tail_D: Tensor | None = None,
    block_size_D: Tensor | None = None,
    block_shift_D: Tensor | None = None,
) -> Layout:
    """Streams, blocks, positions and targets of a batch of packed rows.

    Args:
        rows: R packed rows.
        spec: objective, block grid, views.
        eos_tail_D: mdlm only: EOS targets that follow each complete document, int64, over the
            documents of all rows in order (see `noise.eos_tail_lengths`); None: none.
        block_size_D: bd3lm only: block size of each of these documents, int64 (see
            `noise.draw_block_sizes`); None: spec.block_size.
        block_shift_D: grid segment only: tokens that the first block of each segment is shorter,
            int64, below the block size (see `noise.draw_block_shifts`); None: 0.

    Returns:
        Layout padded to the longest row.

    Raises:
        ValueError: a document that holds no target.
    """
    tokens, run_C = _flatten(rows)
    doc_id_D = torch.cat([row.doc_id_D for row in rows])
    is_complete_D = torch.cat([row.is_complete_D for row in rows])
    if block_size_D is None:
        block_size_D = torch.full_like(doc_id_D, spec.block_size)
    size_C = block_size_D[tokens["doc"]]
    shift_C = 0 if block_shift_D is None else block_shift_D[tokens["doc"]]
    tokens = _place_in_blocks(tokens, run_C, size_C, shift_C, spec)
    ends, counts = _fill_plan(tokens, run_C, size_C, is_complete_D, eos_tail_D, spec)
    noisy = _join([tokens, _fill(tokens, ends, counts, spec.eos_id)])
    last_block_D = _last_target_block(noisy, doc_id_D.numel())
    if spec.right_shift:
        is_needed = noisy["block"] <= last_block_D[noisy["doc"]]
    else:
        is_needed = _any_per_group(noisy["block"], noisy["is_target"])[noisy["block"]]
    noisy = _pick(noisy, is_needed)
    streams = [{**noisy, "stream": torch.full_like(noisy["doc"], v + 1)} for v in range(spec.views)]
    if spec.objective == "bd3lm":
        if spec.ar_targets:
            last_target_D = _last_target(tokens, doc_id_D.numel())
            clean = _pick(tokens, torch.arange(size_C.numel()) <= last_target_D[tokens["doc"]])
            clean["is_ar_target"] = clean["is_target"] & (clean["position"] > 0)
        else:
            clean = _pick(tokens, tokens["block"] < last_block_D[tokens["doc"]])
        clean["is_target"] = torch.zeros_like(clean["is_target"])
        streams.insert(0, clean)
    return _pad(_join(streams), doc_id_D, rows, spec)


def document_costs(documents: PackedRow, spec: LayoutSpec, *, eos_tail: int = 0) -> Tensor:
    """Tokens that each document takes over all streams, exactly as `build_layout` lays it out.

    Args:
        documents: D documents one after the other (here a "row" may be of any length).
        spec: objective, block grid, views.
        eos_tail: mdlm: the longest tail of EOS targets after a complete document.

    Returns:
        int64 [D].
    """
    num_docs = documents.doc_id_D.numel()
    layout = build_layout([documents], spec, eos_tail_D=torch.full((num_docs,), eos_tail))
    return torch.bincount(layout.doc_RT[0], minlength=num_docs)


# Flat tokens of a batch: one tensor per key, in the order row, document, position. `doc` and
# `block` count over the whole batch, so they serve as group indices.
_Tokens = dict[str, Tensor]


def _flatten(rows: Sequence[PackedRow]) -> tuple[_Tokens, Tensor]:
    """Tokens of all rows one after the other, and the index of each token's segment run."""
    num_docs = torch.tensor([row.doc_id_D.numel() for row in rows])
    first_doc = num_docs.cumsum(0) - num_docs
    doc = torch.cat([row.doc_C + first for row, first in zip(rows, first_doc, strict=True)])
    segment = torch.cat([row.segment_C for row in rows])
    tokens = {
        "row": torch.cat([torch.full_like(row.doc_C, r) for r, row in enumerate(rows)]),
        "doc": doc,
        "ids": torch.cat([row.ids_C for row in rows]),
        "is_target": torch.cat([row.is_target_C for row in rows]),
        "position": index_in_run(run_index(doc)),
        "stream": torch.zeros_like(doc),
        "is_ar_target": torch.zeros_like(doc, dtype=torch.bool),
    }
    if not _any_per_group(doc, tokens["is_target"]).all():
        raise ValueError("a packed row holds a document without targets: pack it again")
    return tokens, run_index(doc, segment)


def _place_in_blocks(
    tokens: _Tokens, run_C: Tensor, size_C: Tensor, shift_C: Tensor | int, spec: LayoutSpec
) -> _Tokens:
    """Adds `block` (counted over the batch) and `offset` (within the block)."""
    doc = tokens["doc"]
    position = tokens["position"]
    if spec.objective == "mdlm":
        return {**tokens, "block": doc, "offset": position}
    if spec.block_grid == "segment":
        unit = run_C
        grid = index_in_run(run_C) + shift_C
    elif spec.block_grid == "absolute":
        unit = doc
        grid = position
    else:
        far = position.max() + 1
        num_docs = int(doc[-1]) + 1
        first = torch.where(tokens["is_target"], position, far)
        prompt_D = torch.full((num_docs,), int(far)).scatter_reduce(0, doc, first, "amin")
        unit = doc
        grid = position + -prompt_D[doc] % size_C
    block = run_index(unit, grid // size_C)
    return {**tokens, "block": block, "offset": grid % size_C}


def _fill_plan(
    tokens: _Tokens,
    run_C: Tensor,
    size_C: Tensor,
    is_complete_D: Tensor,
    eos_tail_D: Tensor | None,
    spec: LayoutSpec,
) -> tuple[Tensor, Tensor]:
    """Indices of the tokens that EOS targets follow, and how many follow each."""
    doc = tokens["doc"]
    is_target = tokens["is_target"]
    index = torch.arange(doc.numel())
    last_target_D = _last_target(tokens, is_complete_D.numel())
    is_last = torch.zeros_like(is_target)
    is_last[last_target_D] = True
    if spec.objective == "mdlm":
        if eos_tail_D is None:
            return last_target_D[:0], last_target_D[:0]
        ends = last_target_D[is_complete_D]
        return ends, eos_tail_D[is_complete_D]
    ends_run = torch.ones_like(is_target)
    ends_run[:-1] = run_C[1:] != run_C[:-1]
    if spec.block_grid != "segment":
        ends_run = is_last
    ends = index[ends_run & is_target & (~is_last | is_complete_D[doc])]
    return ends, (size_C - 1 - tokens["offset"])[ends]


def _fill(tokens: _Tokens, ends: Tensor, counts: Tensor, eos_id: int) -> _Tokens:
    """`counts` EOS targets behind each token of `ends`, in its block."""
    step = index_in_run(torch.repeat_interleave(torch.arange(ends.numel()), counts)) + 1
    filled = _pick(tokens, torch.repeat_interleave(ends, counts))
    return {
        **filled,
        "ids": torch.full_like(filled["ids"], eos_id),
        "is_target": torch.ones_like(filled["is_target"]),
        "position": filled["position"] + step,
        "offset": filled["offset"] + step,
    }


def _pad(tokens: _Tokens, doc_id_D: Tensor, rows: Sequence[PackedRow], spec: LayoutSpec) -> Layout:
    """Sorts by document, stream, block, offset and pads every row to the longest."""
    first_block_D = -_max_per_group(tokens["doc"], -tokens["block"], doc_id_D.numel())
    for key in ("offset", "block", "stream", "doc"):  # least significant first: a stable lexsort
        tokens = _pick(tokens, torch.argsort(tokens[key], stable=True))
    row = tokens["row"]
    doc = tokens["doc"]
    column = index_in_run(row)
    first_doc_R = torch.tensor([0, *(r.doc_id_D.numel() for r in rows)]).cumsum(0)[:-1]

    def padded(values: Tensor, fill: int) -> Tensor:
        shape = (len(rows), int(column.max()) + 1)
        return torch.full(shape, fill, dtype=values.dtype).index_put((row, column), values)

    return Layout(
        ids_RT=padded(tokens["ids"], spec.pad_id),
        doc_RT=padded(doc - first_doc_R[row], PAD_DOC),
        doc_id_RT=padded(doc_id_D[doc], 0),
        block_RT=padded(tokens["block"] - first_block_D[doc], 0),
        offset_RT=padded(tokens["offset"], 0),
        stream_RT=padded(tokens["stream"], 0),
        position_RT=padded(tokens["position"], 0),
        is_target_RT=padded(tokens["is_target"], False),
        is_ar_target_RT=padded(tokens["is_ar_target"], False),
    )


def _pick(tokens: _Tokens, index: Tensor) -> _Tokens:
    return {key: value[index] for key, value in tokens.items()}


def _join(parts: Sequence[_Tokens]) -> _Tokens:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _last_target_block(tokens: _Tokens, num_docs: int) -> Tensor:
    """Index of the last block of each document that holds a target."""
    is_target = tokens["is_target"]
    return _max_per_group(tokens["doc"][is_target], tokens["block"][is_target], num_docs)


def _last_target(tokens: _Tokens, num_docs: int) -> Tensor:
    """Index of the last target of each document."""
    is_target = tokens["is_target"]
    index = torch.arange(is_target.numel())
    return _max_per_group(tokens["doc"][is_target], index[is_target], num_docs)


def _any_per_group(group: Tensor, flag: Tensor) -> Tensor:
    """Whether any element of each group is flagged. Groups are 0..max."""
    count = torch.zeros(int(group.max()) + 1, dtype=torch.int64)
    return count.index_add(0, group, flag.long()) > 0


def _max_per_group(group: Tensor, value: Tensor, num_groups: int) -> Tensor:
    lowest = torch.full((num_groups,), torch.iinfo(torch.int64).min)
    return lowest.scatter_reduce(0, group, value, "amax")
