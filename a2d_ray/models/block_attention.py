"""Attention of training: only what the layout allows, forward and backward.

Registered with transformers, so it serves every architecture; the tiles reach it as the keyword
argument `tiles` of the model's forward. Each tile is two batched matrix products and a softmax; the
query heads that share a key head are folded into its rows, so keys are never repeated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from a2d_ray.diffusion.tiles import Tile

BLOCK_ATTENTION = "a2d_block_sparse"


def block_sparse_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tiles: Sequence[Tile],
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention tile by tile: query [1, H, N, d], key and value [1, K, N, d] -> [1, N, H, d].

    Products are in the dtype of autocast where it is on, softmax and sums in float32.
    """
    num_heads, num_tokens, dim = query.shape[1:]
    num_key_heads = key.shape[1]
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    grouped = (query[0] * scaling).to(dtype).view(num_key_heads, -1, num_tokens, dim)
    attended = _TiledAttention.apply(grouped, key[0].to(dtype), value[0].to(dtype), tiles)
    return attended.view(num_heads, num_tokens, dim).transpose(0, 1)[None], None


class _TiledAttention(torch.autograd.Function):
    """query [K, G, N, d] (scaled), key and value [K, N, d] -> [K, G, N, d].

    Probabilities are kept for the backward pass, in the dtype of the products.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[Tile]
    ) -> Tensor:
        output = torch.empty_like(query)
        kept = []
        with torch.autocast(query.device.type, enabled=False):
            for tile in tiles:
                folded = _fold(query[:, :, tile.start : tile.stop])
                scores = torch.bmm(folded, _gather(key, tile).transpose(1, 2))
                probabilities = _hide(scores, tile).softmax(-1)
                attended = torch.bmm(probabilities, _gather(value, tile))
                _unfold_into(output[:, :, tile.start : tile.stop], attended)
                kept.append(probabilities)
        ctx.tiles = tiles
        ctx.save_for_backward(query, key, value, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        for tile, probabilities in zip(ctx.tiles, kept, strict=True):
            here = slice(tile.start, tile.stop)
            grad = _fold(gradients[0][:, :, here])
            _scatter(grad_value, tile, torch.bmm(probabilities.transpose(1, 2), grad))
            grad_scores = torch._softmax_backward_data(
                torch.bmm(grad, _gather(value, tile).transpose(1, 2)), probabilities, -1, grad.dtype
            )
            _unfold_into(grad_query[:, :, here], torch.bmm(grad_scores, _gather(key, tile)))
            folded = _fold(query[:, :, here])
            _scatter(grad_key, tile, torch.bmm(grad_scores.transpose(1, 2), folded))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _fold(grouped: Tensor) -> Tensor:
    """[K, G, n, d] -> [K, G n, d]."""
    return grouped.reshape(grouped.shape[0], -1, grouped.shape[-1])


def _unfold_into(target: Tensor, folded: Tensor) -> None:
    """[K, G n, d] into [K, G, n, d]."""
    target.copy_(folded.view(target.shape))


def _gather(values: Tensor, tile: Tile) -> Tensor:
    parts = [values[:, start:stop] for start, stop in tile.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scatter(target: Tensor, tile: Tile, gradient: Tensor) -> None:
    sizes = [stop - start for start, stop in tile.keys]
    for (start, stop), part in zip(tile.keys, gradient.split(sizes, dim=1), strict=True):
        target[:, start:stop] += part


def _hide(scores: Tensor, tile: Tile) -> Tensor:
    """Scores [K, G n, S] with those of hidden keys at -inf, in place."""
    if tile.hidden is not None:
        num_queries = tile.stop - tile.start
        grouped = scores.view(scores.shape[0], -1, num_queries, scores.shape[-1])
        grouped[..., tile.num_open :].masked_fill_(tile.hidden, -torch.inf)
    return scores


AttentionInterface.register(BLOCK_ATTENTION, block_sparse_attention)
