"""Rows as the public recipe lays them out: one sequence each, filled with EOS that is learned.

Source: dLLM / Tiny-A2D, arXiv 2602.22661.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import LayoutSpec, PackedRow


def recipe_rows(
    rows: Sequence[PackedRow], spec: LayoutSpec, *, bos_id: int | None
) -> list[PackedRow]:
    """The rows of a micro-batch with their fill, which then is ordinary text, and BOS.

    BD3LM fills every row with EOS targets to a multiple of the block size, MDLM to the longest
    row. With right shift, BOS is put before every row unless no row begins with a target.

    Args:
        rows: rows of one document each.
        spec: objective, block size, EOS, right shift.
        bos_id: id of BOS; None where the tokenizer has none.

    Raises:
        ValueError: a packed row, or BOS is needed and there is none.
    """
    if any(row.doc_id_D.numel() != 1 for row in rows):
        raise ValueError("objective.preset=reference takes one document per row: no packing")
    longest = max(row.ids_C.numel() for row in rows)
    filled = []
    for row in rows:
        length = row.ids_C.numel()
        fill = -length % spec.block_size if spec.objective == "bd3lm" else longest - length
        filled.append(_extend(row, after=fill, id_=spec.eos_id))
    if not spec.right_shift or not any(bool(row.is_target_C[0]) for row in rows):
        return filled
    if bos_id is None:
        raise ValueError("objective.right_shift_logits needs a tokenizer with a BOS token")
    return [_extend(row, before=1, id_=bos_id) for row in filled]


def _extend(row: PackedRow, *, id_: int, before: int = 0, after: int = 0) -> PackedRow:
    """The row with more tokens of one id; those after it are targets. None is added later on."""

    def extended(values: Tensor, first: int, last: int) -> Tensor:
        head = values.new_full((before,), first)
        tail = values.new_full((after,), last)
        return torch.cat([head, values, tail])

    return replace(
        row,
        ids_C=extended(row.ids_C, id_, id_),
        doc_C=extended(row.doc_C, 0, 0),
        segment_C=extended(row.segment_C, int(row.segment_C[0]), int(row.segment_C[-1])),
        is_target_C=extended(row.is_target_C, 0, 1),
        is_complete_D=torch.zeros_like(row.is_complete_D),
    )
