"""FlexAttention over a layout, for CUDA devices: blocks of the mask that are empty are skipped.

Compiled on CUDA; on a CPU the same function runs uncompiled, which is how it is tested without one.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface

from a2d_ray.diffusion.coverage import TILE, tile_coverage
from a2d_ray.diffusion.flat import FlatTokens
from a2d_ray.diffusion.masks import may_attend
from a2d_ray.models.attention_state import state_of

FLEX_ATTENTION = "a2d_flex"


_TENSORS = tuple(
    f"{full}{side}_{what}"
    for full in ("", "full_")
    for side in ("kv", "q")
    for what in ("num_blocks", "indices")
)


def mask_blocks(tokens: FlatTokens, *, is_causal_clean: bool = False) -> BlockMask:
    """The blocks of `masks.may_attend` over tokens in one row, on the CPU; see `with_predicate`."""
    seen_BB, open_BB = tile_coverage(tokens, is_causal_clean=is_causal_clean)
    return BlockMask.from_kv_blocks(
        *_listed(seen_BB & ~open_BB),
        *_listed(open_BB),
        BLOCK_SIZE=TILE,
        seq_lengths=(len(tokens.doc_N), len(tokens.doc_N)),
    )


def with_predicate(
    blocks: BlockMask, tokens: FlatTokens, *, is_causal_clean: bool = False
) -> BlockMask:
    """The mask: its blocks, and for those that are not full the predicate itself.

    Args:
        blocks: of `mask_blocks`, on the device of the tokens.
        tokens: whose mask it is.
        is_causal_clean: as for `mask_blocks`.
    """

    def predicate(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        columns = (tokens.doc_N, tokens.stream_N, tokens.block_N, tokens.position_N)
        pairs = [(values[query], values[key]) for values in columns]
        return may_attend(*pairs, is_causal_clean=is_causal_clean)

    return _made(blocks, lambda x: x, predicate)


def moved(blocks: BlockMask, move: Callable[[Tensor], Tensor]) -> BlockMask:
    """A mask with the tensors of its blocks moved; those of its predicate stay."""
    return _made(blocks, move, blocks.mask_mod)


def _made(blocks: BlockMask, move: Callable[[Tensor], Tensor], predicate: Any) -> BlockMask:
    tensors: dict[str, Any] = {name: move(getattr(blocks, name)) for name in _TENSORS}
    return BlockMask(
        seq_lengths=blocks.seq_lengths,
        BLOCK_SIZE=blocks.BLOCK_SIZE,
        mask_mod=predicate,
        **tensors,
    )


def _listed(is_in_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Number of marked tiles in each row, and their columns first, int32 [1, 1, B(, B)]."""
    columns_BB = torch.argsort(is_in_BB.int(), dim=-1, descending=True, stable=True)
    return is_in_BB.sum(-1).int()[None, None], columns_BB.int()[None, None]


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
    """Attention [1, H, N, d] over keys [1, K, N, d] -> [1, N, H, d].

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
    share_1HN = torch.sigmoid(summary.lse - s_aux.float()[None, :, None])
    return (attended * share_1HN[..., None].to(attended.dtype)).transpose(1, 2).contiguous(), None


@lru_cache
def _kernel(device: str) -> Any:
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


AttentionInterface.register(FLEX_ATTENTION, layout_flex_attention)
