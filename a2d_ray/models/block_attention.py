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
from a2d_ray.models.attention_state import state_of

BLOCK_ATTENTION = "a2d_block_sparse"


def block_sparse_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tiles: Sequence[Tile] | None = None,
    clean_keys: "CleanKeys | None" = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention tile by tile: query [1, H, N, d], key and value [1, K, N, d] -> [1, N, H, d].

    Products are in the dtype of autocast where it is on, softmax and sums in float32.

    Args:
        module: asked for tiles that did not get here; see `attention_state`.
        attention_mask: unread.
        query, key, value: values may have a width of their own.
        tiles: who sees whom.
        clean_keys: of the clean tokens, which ran before; None: all run together.
        scaling: of the scores; None: 1 / sqrt(d).
        softcap: c, where scores are c tanh(scores / c).
        s_aux: [H], a score per head that takes its share of the probability and gives nothing.
    """
    num_heads, num_tokens, dim = query.shape[1:]
    if tiles is None:
        tiles, clean_keys = state_of(module, "tiles"), state_of(module, "clean_keys")
    if clean_keys is not None:
        key, value = clean_keys.joined(module, key, value)
    scaling = dim**-0.5 if scaling is None else scaling
    num_key_heads = key.shape[1]
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    grouped = (query[0] * scaling).to(dtype).view(num_key_heads, -1, num_tokens, dim)
    sinks = None if s_aux is None else s_aux.view(num_key_heads, -1).to(dtype)
    attended = _TiledAttention.apply(
        grouped, key[0].to(dtype), value[0].to(dtype), sinks, softcap, tiles
    )
    output = attended.view(num_heads, num_tokens, -1).transpose(0, 1)[None]
    return output.contiguous(), None  # some families look at it by view


class CleanKeys:
    """Keys and values of the clean tokens in every layer: first they are kept, then read.

    Attributes:
        is_kept: all layers have run on the clean tokens.
    """

    def __init__(self) -> None:
        self.is_kept = False
        self._of_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def joined(self, module: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the noised tokens [1, K, N, d] behind the clean ones; clean ones as they are."""
        if not self.is_kept:
            self._of_layer[id(module)] = (key, value)
            return key, value
        clean_key, clean_value = self._of_layer[id(module)]
        return torch.cat([clean_key, key], dim=2), torch.cat([clean_value, value], dim=2)


class _TiledAttention(torch.autograd.Function):
    """query [K, G, N, d] (scaled), key [K, N, d], value [K, N, e], sinks [K, G] -> [K, G, N, e].

    Probabilities are kept for the backward pass, in the dtype of the products; with a soft-cap the
    slopes of the scores too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        softcap: float | None,
        tiles: Sequence[Tile],
    ) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        kept = []
        slopes = []
        with torch.autocast(query.device.type, enabled=False):
            for tile in tiles:
                folded = _fold(query[:, :, tile.start : tile.stop])
                scores = torch.bmm(folded, _gather(key, tile).transpose(1, 2))
                if softcap is not None:
                    share = torch.tanh(scores / softcap)
                    scores = share * softcap
                    slopes.append(1 - share * share)
                scores = _hide(scores, tile)
                if sinks is None:
                    probabilities = scores.softmax(-1)
                else:
                    sink_KR = sinks.repeat_interleave(tile.stop - tile.start, dim=1)
                    probabilities = softmax_beside_sinks(scores, sink_KR)
                attended = torch.bmm(probabilities, _gather(value, tile))
                _unfold_into(output[:, :, tile.start : tile.stop], attended)
                kept.append(probabilities)
        ctx.tiles = tiles
        ctx.has_sinks = sinks is not None
        ctx.save_for_backward(query, key, value, *kept, *slopes)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        kept, slopes = saved[: len(ctx.tiles)], saved[len(ctx.tiles) :]
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        grad_sinks = query.new_zeros(query.shape[:2], dtype=torch.float32)
        for place, (tile, probabilities) in enumerate(zip(ctx.tiles, kept, strict=True)):
            here = slice(tile.start, tile.stop)
            grad = _fold(gradients[0][:, :, here])
            _scatter(grad_value, tile, torch.bmm(probabilities.transpose(1, 2), grad))
            grad_shares = torch.bmm(grad, _gather(value, tile).transpose(1, 2))
            if ctx.has_sinks:
                grad_sinks += _sink_gradient(grad_shares, probabilities, query.shape[1])
            # With sinks too: they are one more column, whose share nobody reads.
            grad_scores = torch._softmax_backward_data(grad_shares, probabilities, -1, grad.dtype)
            if slopes:
                grad_scores = grad_scores * slopes[place]
            _unfold_into(grad_query[:, :, here], torch.bmm(grad_scores, _gather(key, tile)))
            folded = _fold(query[:, :, here])
            _scatter(grad_key, tile, torch.bmm(grad_scores.transpose(1, 2), folded))
        sink_gradient = grad_sinks.to(query.dtype) if ctx.has_sinks else None
        return (
            grad_query,
            grad_key.to(key.dtype),
            grad_value.to(value.dtype),
            sink_gradient,
            None,
            None,
        )


def softmax_beside_sinks(scores_KRS: Tensor, sink_KR: Tensor) -> Tensor:
    """Softmax over the scores of a row and its sink, without the sink's share, [K, R, S].

    Source: GPT-OSS (arXiv 2508.10925), after StreamingLLM, 2309.17453.
    """
    with_sink = torch.cat([scores_KRS, sink_KR[..., None].to(scores_KRS.dtype)], dim=-1)
    return with_sink.softmax(-1)[..., :-1]


def _sink_gradient(grad_shares: Tensor, probabilities: Tensor, num_groups: int) -> Tensor:
    """-p_sink x sum over keys of gradient x probability, summed over tokens, float32 [K, G]."""
    read = (grad_shares.float() * probabilities.float()).sum(-1)
    rows = (1 - probabilities.float().sum(-1)) * read
    return -rows.view(rows.shape[0], num_groups, -1).sum(-1)


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
