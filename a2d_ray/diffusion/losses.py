"""Cross-entropy at masked positions only, summed, in chunks; and what the sum is divided by."""

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from a2d_ray.diffusion.head_loss import Head, LogitLoss, summed_loss
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise

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
    is_compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum of weight x -log p(label), with one token excluded from the vocabulary.

    With `confidence_weight` c the sum gains c x entropy of p at every token whose most likely
    token is the label: what is known becomes certain, so that more is committed per forward.

    Logits exist for one chunk at a time, and their gradient is taken there: see `summed_loss`.

    Args:
        hidden_NH: final hidden states of the masked tokens.
        head: final hidden states to logits, [N, H] -> [N, V].
        labels_N: clean ids.
        weight_N: float32 weights.
        excluded_id: id whose logit is -inf (the mask token); None: every logit counts.
        confidence_weight: c.
        chunk_tokens: tokens per chunk.
        is_compiled: whether what follows the logits is compiled.

    Returns:
        The weighted sum (float32 scalar, differentiable) and the cross-entropies [N] (float32,
        detached), in nats. Without tokens the sum is a connected zero.

    Source: confidence-aware parallel training, LLaDA2.0 (arXiv 2512.15745).
    """
    if labels_N.numel() == 0:
        return _connected_zero(hidden_NH, head), weight_N
    of_labels = _made(label_loss, is_compiled)

    def loss(logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return of_labels(logits, labels, weight, excluded_id, confidence_weight)

    return summed_loss(loss, head, hidden_NH, (labels_N, weight_N), chunk_tokens)


def label_loss(
    logits_NV: Tensor,
    labels_N: Tensor,
    weight_N: Tensor,
    excluded_id: int | None,
    confidence_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`masked_cross_entropy` of logits, a `LogitLoss`."""
    logp_NV = _without(logits_NV, excluded_id).log_softmax(-1)
    loss_N = -logp_NV.gather(1, labels_N[:, None])[:, 0]
    total = (loss_N * weight_N).sum()
    if not confidence_weight:
        gradient_NV = logp_NV.exp_()
        gradient_NV.scatter_add_(1, labels_N[:, None], -torch.ones_like(weight_N)[:, None])
        return total, loss_N, gradient_NV.mul_(weight_N[:, None]).to(logits_NV.dtype)
    is_right_N = logp_NV.argmax(-1) == labels_N
    if logits_NV.device.type == "cpu":  # elsewhere a selection would wait for its size
        right = is_right_N.nonzero()[:, 0]
        share_n = torch.ones_like(right, dtype=torch.float32)
    else:
        right = torch.arange(len(labels_N), device=labels_N.device)
        share_n = is_right_N.float()
    entropy_n, slope_nV = _entropy_and_slope(logp_NV[right])
    gradient_NV = logp_NV.exp_()
    gradient_NV.scatter_add_(1, labels_N[:, None], -torch.ones_like(weight_N)[:, None])
    gradient_NV.mul_(weight_N[:, None])
    gradient_NV.index_add_(0, right, slope_nV.mul_(confidence_weight * share_n[:, None]))
    total = total + confidence_weight * (entropy_n * share_n).sum()
    return total, loss_N, gradient_NV.to(logits_NV.dtype)


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
    is_compiled: bool = False,
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
        is_compiled: whether what follows the logits is compiled.

    Returns:
        As `masked_cross_entropy`; with q = p the least: the entropy of q.

    Source: knowledge distillation, arXiv 1503.02531.
    """
    if weight_N.numel() == 0:
        return _connected_zero(hidden_NH, head), weight_N
    of_teacher = _made(taught_loss, is_compiled)

    def loss(logits: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            taught = head(teacher)
        return of_teacher(logits, taught, weight, excluded_id)

    return summed_loss(loss, head, hidden_NH, (teacher_NH.detach(), weight_N), chunk_tokens)


def taught_loss(
    logits_NV: Tensor, teacher_NV: Tensor, weight_N: Tensor, excluded_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`taught_cross_entropy` of the logits of both, a `LogitLoss`."""
    logp_NV = _without(logits_NV, excluded_id).log_softmax(-1)
    q_NV = _without(teacher_NV, excluded_id).softmax(-1)
    p_NV = logp_NV.exp()
    logp_NV[:, excluded_id] = 0.0  # q is 0 there
    loss_N = -(q_NV * logp_NV).sum(-1)
    gradient_NV = p_NV.sub_(q_NV).mul_(weight_N[:, None])
    return (loss_N * weight_N).sum(), loss_N, gradient_NV.to(logits_NV.dtype)


@lru_cache
def _made(loss: LogitLoss, is_compiled: bool) -> LogitLoss:
    """A loss as it is, or compiled: one kernel reads the logits, one writes their gradient."""
    return torch.compile(loss, dynamic=True) if is_compiled else loss


def _connected_zero(hidden_NH: Tensor, head: Head) -> Tensor:
    """Zero, with a gradient of zero to the hidden states and the head."""
    return hidden_NH.float().sum() * 0 + head(hidden_NH[:0]).float().sum() * 0


def _logits(hidden_NH: Tensor, head: Head, excluded_id: int | None) -> Tensor:
    """Logits [N, V], float32, -inf at one id."""
    logits_NV = head(hidden_NH).float()
    # Not seen by autograd, which would copy the gradient [N, V]. The gradient there is zero
    # anyway: the token's probability is, and no label is this id.
    _without(logits_NV.detach(), excluded_id)
    return logits_NV


def _without(logits_NV: Tensor, excluded_id: int | None) -> Tensor:
    """Logits [N, V] as float32, -inf at one id: written in place where they are float32."""
    logits_NV = logits_NV.float()
    if excluded_id is not None:
        logits_NV[:, excluded_id] = -torch.inf
    return logits_NV


def _entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of softmax(logits), nats, [N]; logits may be -inf."""
    return _entropy_and_slope(logits_NV.log_softmax(-1))[0]


def _entropy_and_slope(logp_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of p [N], nats, and its gradient [N, V] in the logits: -p (log p + entropy)."""
    p_NV = logp_NV.exp()
    finite_NV = logp_NV.masked_fill(logp_NV.isneginf(), 0.0)
    entropy_N = -(p_NV * finite_NV).sum(-1)
    return entropy_N, finite_NV.add_(entropy_N[:, None]).mul_(p_NV).neg_()


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
