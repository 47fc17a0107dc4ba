"""The tokens of a layout in one row: no padding between rows, so none is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.diffusion.runs import run_index
from a2d_ray.diffusion.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class FlatTokens(Tensors):
    """The n tokens of a layout, row after row, and a tail of padding up to N. Tensors are [N].

    Attributes:
        num_tokens: n.
        place_N: index of each in the layout's R x T places, int64; 0 in the tail.
        doc_N: documents, counted over all rows; PAD_DOC in the tail.
        stream_N, block_N, position_N: as in the layout; 0 in the tail.
    """

    num_tokens: int
    place_N: Tensor
    doc_N: Tensor
    stream_N: Tensor
    block_N: Tensor
    position_N: Tensor


def flatten(layout: Layout, multiple: int = 1) -> FlatTokens:
    """The tokens of a layout in one row, whose length is a multiple of a number."""
    is_real = layout.doc_RT != PAD_DOC
    place_n = is_real.flatten().nonzero()[:, 0]
    num_tokens = len(place_n)
    doc_n = run_index(place_n // is_real.shape[1], layout.doc_RT[is_real])

    def padded(values_n: Tensor, fill: int = 0) -> Tensor:
        tail = values_n.new_full((-num_tokens % multiple,), fill)
        return torch.cat([values_n, tail])

    return FlatTokens(
        num_tokens=num_tokens,
        place_N=padded(place_n),
        doc_N=padded(doc_n, PAD_DOC),
        stream_N=padded(layout.stream_RT[is_real]),
        block_N=padded(layout.block_RT[is_real]),
        position_N=padded(layout.position_RT[is_real]),
    )
