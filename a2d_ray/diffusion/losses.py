"""Cross-entropy at masked positions only, summed, in chunks; and what the sum is divided by."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise

Norm = Literal["step", "token", "sequence", "batch"]
CHUNK_TOKENS = 1024


@torch.no_grad()
def token_scores(
    hidden_NH: Tensor,
    head_VH: Tensor,
    labels_N: Tensor,
    excluded_id: int,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (float32 [N], nats) and whether the most likely token is right (bool [N]).

    Args:
        hidden_NH: final hidden states of the masked tokens.
        head_VH: weight of the language-model head.
        labels_N: clean ids.
        excluded_id: id whose logit is -inf (the mask token).
        chunk_tokens: tokens per chunk of logits.
    """
    losses = [hidden_NH.new_zeros(0, dtype=torch.float32)]
    hits = [labels_N.new_zeros(0).bool()]
    for start in range(0, labels_N.numel(), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        logits = linear(hidden_NH[part], head_VH).float()
        logits[:, excluded_id] = -torch.inf
        losses.append(cross_entropy(logits, labels_N[part], reduction="none"))
        hits.append(logits.argmax(-1) == labels_N[part])
    return torch.cat(losses), torch.cat(hits)


def masked_cross_entropy(
    hidden_NH: Tensor,
    head_VH: Tensor,
    labels_N: Tensor,
    weight_N: Tensor,
    excluded_id: int | None,
    *,
    confidence_weight: float = 0.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Sum of weight x -log p(label), with one token excluded from the vocabulary.

    With `confidence_weight` c the sum gains c x entropy of p at every token whose most likely
    token is the label: what is known becomes certain, so that more is committed per forward.

    Logits exist for one chunk at a time; with several chunks they are computed again in the
    backward pass, so memory stays at chunk_tokens x V.

    Args:
        hidden_NH: final hidden states of the masked tokens.
        head_VH: weight of the language-model head.
        labels_N: clean ids.
        weight_N: float32 weights.
        excluded_id: id whose logit is -inf (the mask token); None: every logit counts.
        confidence_weight: c.
        chunk_tokens: tokens per chunk.

    Returns:
        The weighted sum (float32 scalar, differentiable) and the cross-entropies [N] (float32,
        detached), in nats. Without tokens the sum is a connected zero.

    Source: confidence-aware parallel training, LLaDA2.0 (arXiv 2512.15745).
    """
    if labels_N.numel() == 0:
        return hidden_NH.float().sum() * 0 + head_VH.float().sum() * 0, weight_N

    def chunk_loss(hidden: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        logits = linear(hidden, head_VH).float()
        if excluded_id is not None:
            logits[:, excluded_id] = -torch.inf
        loss = cross_entropy(logits, labels, reduction="none")
        total = (loss * weight).sum()
        if confidence_weight:
            is_right = logits.argmax(-1) == labels
            total = total + confidence_weight * _entropy(logits[is_right]).sum()
        return total, loss.detach()

    sums = []
    losses = []
    for start in range(0, labels_N.numel(), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        args = hidden_NH[part], labels_N[part], weight_N[part]
        if labels_N.numel() > chunk_tokens and torch.is_grad_enabled():
            total, each = checkpoint(chunk_loss, *args, use_reentrant=False)
        else:
            total, each = chunk_loss(*args)
        sums.append(total)
        losses.append(each)
    return torch.stack(sums).sum(), torch.cat(losses)


def _entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of softmax(logits), nats, [N]; logits may be -inf."""
    logp_NV = logits_NV.log_softmax(-1)
    return -(logp_NV.exp() * logp_NV.masked_fill(logp_NV.isneginf(), 0.0)).sum(-1)


def normalise(noise: Noise, layout: Layout, norm: Norm) -> Noise:
    """The noise with weights that make the loss of the micro-batch normalised.

    ``token`` is sum / targets of the micro-batch; ``sequence`` the mean over rows of sum_i / n_i,
    where row i has n_i targets; ``batch`` sum / rows. ``step`` leaves the sum: all micro-batches
    of an optimizer step share its denominator, see `denominator`.

    Source: dLLM / Tiny-A2D, arXiv 2602.22661 (all but ``step``).
    """
    if norm == "step":
        return noise
    num_rows = layout.ids_RT.shape[0]
    targets_R1 = layout.is_target_RT.sum(1, keepdim=True)
    divisor: Tensor | int = num_rows
    if norm == "token":
        divisor = targets_R1.sum().clamp(min=1)
    elif norm == "sequence":
        divisor = targets_R1.clamp(min=1) * num_rows
    return replace(noise, weight_RT=noise.weight_RT / divisor)


def denominator(layout: Layout, norm: Norm) -> Tensor:
    """What a micro-batch adds to the denominator of its step: its targets, or itself (int64)."""
    return layout.num_targets if norm == "step" else torch.ones((), dtype=torch.int64)
