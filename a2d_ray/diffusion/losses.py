"""Cross-entropy at masked positions only, summed, in chunks; and what the sum is divided by."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise

Head = Callable[[Tensor], Tensor]
"""Final hidden states [N, H] -> logits [N, V]: the language-model head and what follows it."""

Norm = Literal["step", "token", "sequence", "batch"]
CHUNK_TOKENS = 1024


@torch.no_grad()
def token_scores(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    excluded_id: int,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (float32 [N], nats) and whether the most likely token is right (bool [N]).

    Args:
        hidden_NH: final hidden states of the masked tokens.
        head: final hidden states to logits, [N, H] -> [N, V].
        labels_N: clean ids.
        excluded_id: id whose logit is -inf (the mask token).
        chunk_tokens: tokens per chunk of logits.
    """
    losses = [hidden_NH.new_zeros(0, dtype=torch.float32)]
    hits = [labels_N.new_zeros(0).bool()]
    for start in range(0, labels_N.numel(), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        logits = _logits(hidden_NH[part], head, excluded_id)
        losses.append(cross_entropy(logits, labels_N[part], reduction="none"))
        hits.append(logits.argmax(-1) == labels_N[part])
    return torch.cat(losses), torch.cat(hits)


@torch.no_grad()
def likeliest(
    hidden_NH: Tensor, head: Head, excluded_id: int, *, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """The most likely token at each position, but one id, int64 [N]. See `token_scores`."""
    chunks = hidden_NH.split(chunk_tokens)
    return torch.cat([_logits(chunk, head, excluded_id).argmax(-1) for chunk in chunks])


def masked_cross_entropy(
    hidden_NH: Tensor,
    head: Head,
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
        head: final hidden states to logits, [N, H] -> [N, V].
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
        return _connected_zero(hidden_NH, head), weight_N

    def chunk_loss(hidden: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        logits = _logits(hidden, head, excluded_id)
        loss = cross_entropy(logits, labels, reduction="none")
        total = (loss * weight).sum()
        if confidence_weight:
            is_right = logits.argmax(-1) == labels
            total = total + confidence_weight * _entropy(logits[is_right]).sum()
        return total, loss.detach()

    return _in_chunks(chunk_loss, (hidden_NH, labels_N, weight_N), chunk_tokens)


def label_logprobs(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    excluded_id: int,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """log p(label) of each token, float32 [N], differentiable; and entropies of p, detached.

    Args:
        hidden_NH: final hidden states of N > 0 tokens.
        head: final hidden states to logits, [N, H] -> [N, V].
        labels_N: ids.
        excluded_id: id whose logit is -inf (the mask token).
        chunk_tokens: tokens per chunk of logits; see `masked_cross_entropy`.
    """

    def chunk_logprobs(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = _logits(hidden, head, excluded_id)
        return -cross_entropy(logits, labels, reduction="none"), _entropy(logits.detach())

    chunks = zip(hidden_NH.split(chunk_tokens), labels_N.split(chunk_tokens), strict=True)
    is_long = len(labels_N) > chunk_tokens and torch.is_grad_enabled()
    if is_long:
        parts = [checkpoint(chunk_logprobs, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [chunk_logprobs(*chunk) for chunk in chunks]
    logp, entropy = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(entropy)


def taught_cross_entropy(
    hidden_NH: Tensor,
    teacher_NH: Tensor,
    head: Head,
    weight_N: Tensor,
    excluded_id: int,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Sum of weight x -sum_v q(v) log p(v): p learns the distribution q of a teacher.

    Both read the same head; no gradient reaches the teacher. Memory as in `masked_cross_entropy`,
    with the teacher's logits beside.

    Args:
        hidden_NH: final hidden states that p is read from.
        teacher_NH: final hidden states that q is read from.
        head: final hidden states to logits, [N, H] -> [N, V].
        weight_N: float32 weights.
        excluded_id: id that has probability 0 in both (the mask token).
        chunk_tokens: tokens per chunk.

    Returns:
        As `masked_cross_entropy`; with q = p the least: the entropy of q.

    Source: knowledge distillation, arXiv 1503.02531.
    """
    if weight_N.numel() == 0:
        return _connected_zero(hidden_NH, head), weight_N

    def chunk_loss(hidden: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        logp = _logits(hidden, head, excluded_id).log_softmax(-1)
        with torch.no_grad():
            q = _logits(teacher, head, excluded_id).softmax(-1)
        loss = -(q * logp.masked_fill(logp.isneginf(), 0.0)).sum(-1)
        return (loss * weight).sum(), loss.detach()

    return _in_chunks(chunk_loss, (hidden_NH, teacher_NH.detach(), weight_N), chunk_tokens)


def _in_chunks(
    chunk_loss: Callable[..., tuple[Tensor, Tensor]], args: tuple[Tensor, ...], chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Sum and single values of a loss over tokens; several chunks are recomputed in the backward.

    Args:
        chunk_loss: its sum and its values, of a chunk of each of `args`.
        args: tensors [N, ...].
        chunk_tokens: tokens per chunk.
    """
    chunks = list(zip(*(arg.split(chunk_tokens) for arg in args), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [chunk_loss(*chunk) for chunk in chunks]
    sums, losses = zip(*parts, strict=True)
    return torch.stack(sums).sum(), torch.cat(losses)


def _connected_zero(hidden_NH: Tensor, head: Head) -> Tensor:
    """Zero, with a gradient of zero to the hidden states and the head."""
    return hidden_NH.float().sum() * 0 + head(hidden_NH[:0]).float().sum() * 0


def _logits(hidden_NH: Tensor, head: Head, excluded_id: int | None) -> Tensor:
    """Logits [N, V], float32, -inf at one id."""
    logits_NV = head(hidden_NH).float()
    if excluded_id is not None:
        # Not seen by autograd, which would copy the gradient [N, V]. The gradient there is zero
        # anyway: the token's probability is, and no label is this id.
        logits_NV.detach()[:, excluded_id] = -torch.inf
    return logits_NV


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
