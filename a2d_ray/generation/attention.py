"""Ragged attention: the new tokens of many requests in one forward, each against its own keys.

Registered with transformers, so it serves every architecture; the state of a round reaches it as
the keyword argument `ragged` of the model's forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from a2d_ray.generation.cache import KVCache

NAME = "a2d_ragged"


@dataclass(frozen=True, kw_only=True)
class RaggedSlice:
    """The part of a round's tokens that belongs to one request.

    Attributes:
        start, stop: range of its n tokens in the round.
        cache: its keys and values; None: the n tokens see only each other.
        num_cached: tokens in the cache, S; the n new ones are written behind them.
        mask: bool [n, S + n], True = attend; None: everything is visible.
    """

    start: int
    stop: int
    cache: KVCache | None
    num_cached: int
    mask: Tensor | None


def ragged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    ragged: Sequence[RaggedSlice],
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a round: query [1, H, N, d], key and value [1, K, N, d] -> [1, N, H, d].

    The H / K query heads that share a key head are folded into its rows, so keys are never
    repeated.
    """
    num_key_heads, dim = key.shape[1], key.shape[3]
    num_shared = query.shape[1] // num_key_heads
    output = query.new_empty(1, query.shape[2], query.shape[1], dim)
    for part in ragged:
        new = slice(part.start, part.stop)
        keys, values = key[:, :, new], value[:, :, new]
        if part.cache is not None:
            keys, values = part.cache.write(module.layer_idx, keys, values, part.num_cached)
        mask = None if part.mask is None else part.mask.repeat(num_shared, 1)
        folded = query[:, :, new].reshape(1, num_key_heads, -1, dim)
        attended = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
        output[0, new] = attended.view(query.shape[1], -1, dim).transpose(0, 1)
    return output, None


@contextmanager
def ragged_mode(model: nn.Module) -> Iterator[None]:
    """Within it, the model's layers attend by `ragged_attention`."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, ragged_attention)
