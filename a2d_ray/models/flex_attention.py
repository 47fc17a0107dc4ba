"""FlexAttention over a layout, for CUDA devices: blocks of the mask that are empty are skipped.

Compiled on CUDA; on a CPU the same function runs uncompiled, which is how it is tested without one.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)
from transformers import AttentionInterface

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.masks import may_attend
from a2d_ray.models.attention_state import state_of

FLEX_ATTENTION = "a2d_flex"


def block_mask(layout: Layout, *, is_causal_clean: bool = False) -> BlockMask:
    """`masks.may_attend` over the R rows of a layout. Padding sees padding only."""

    def predicate(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        columns = (layout.doc_RT, layout.stream_RT, layout.block_RT, layout.position_RT)
        pairs = [(values[row, query], values[row, key]) for values in columns]
        return may_attend(*pairs, is_causal_clean=is_causal_clean)

    num_rows, length = layout.ids_RT.shape
    return create_block_mask(
        predicate, num_rows, None, length, length, device=str(layout.ids_RT.device)
    )


def layout_flex_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    block_mask: BlockMask | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [R, H, T, d] over keys [R, K, T, d] -> [R, T, H, d].

    `softcap` and `s_aux` as for `block_attention.block_sparse_attention`.
    """
    block_mask = state_of(module, "block_mask") if block_mask is None else block_mask
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return torch.tanh(score / softcap) * softcap

    result = _kernel(device)(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        score_mod=None if softcap is None else capped,
        block_mask=block_mask,
        scale=scaling,
        enable_gqa=True,
        return_aux=None if s_aux is None else AuxRequest(lse=True),
    )
    if s_aux is None:
        return result.transpose(1, 2).contiguous(), None
    attended, summary = result  # a sink takes its share of the probability afterwards
    share_RHT = torch.sigmoid(summary.lse - s_aux.float()[None, :, None])
    return (attended * share_RHT[..., None].to(attended.dtype)).transpose(1, 2).contiguous(), None


@lru_cache
def _kernel(device: str) -> Any:
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


AttentionInterface.register(FLEX_ATTENTION, layout_flex_attention)
