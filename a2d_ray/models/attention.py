"""Ragged attention: tokens of many documents in one forward, each document against its own keys.

Registered with transformers, so it serves every architecture; what belongs together reaches it as
the keyword argument `ragged` of the model's forward. The engine uses it with a cache per request,
training on CPUs without: nothing is computed between documents, and nothing for padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "a2d_ragged"


class KeyValueStore(Protocol):
    """Holds the keys and values of one request."""

    def write(self, layer: int, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Stores [1, K, n, d] behind the first `start` tokens; returns all start + n."""


@dataclass(frozen=True, kw_only=True)
class RaggedSlice:
    """Tokens of a forward that attend to each other. The slices of a forward follow each other.

    Attributes:
        num_tokens: n, the new tokens of the document or request.
        mask: bool [n, S + n], True = attend; None: everything is visible.
        cache: keys and values of S earlier tokens, where the new ones are written behind them;
            None: there are none (S = 0).
        num_cached: S.
    """

    num_tokens: int
    mask: Tensor | None
    cache: KeyValueStore | None = None
    num_cached: int = 0


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
    """Attention slice by slice: query [1, H, N, d], key and value [1, K, N, d] -> [1, N, H, d].

    The H / K query heads that share a key head are folded into its rows, so keys are never
    repeated.
    """
    num_heads, num_key_heads, dim = query.shape[1], key.shape[1], key.shape[3]
    sizes = [part.num_tokens for part in ragged]
    outputs = []
    for part, new_query, keys, values in zip(
        ragged, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True
    ):
        if part.cache is not None:
            keys, values = part.cache.write(module.layer_idx, keys, values, part.num_cached)
        mask = None if part.mask is None else part.mask.repeat(num_heads // num_key_heads, 1)
        folded = new_query.reshape(1, num_key_heads, -1, dim)
        attended = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
        outputs.append(attended.view(num_heads, -1, dim))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


def ragged_hidden(
    backbone: Any, ids_N: Tensor, position_N: Tensor, ragged: Sequence[RaggedSlice]
) -> Tensor:
    """Final hidden states [N, H] of a model without its head; call it within `ragged_mode`.

    Args:
        backbone: `.model` of an A2D model.
        ids_N: token ids of all slices, one after the other; `position_N` their positions.
        ragged: the slices.
    """
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_N.device)
    return backbone(
        input_ids=ids_N[None],
        position_ids=position_N[None],
        attention_mask=unread,
        use_cache=False,
        ragged=ragged,
    ).last_hidden_state[0]


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
