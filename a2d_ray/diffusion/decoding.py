"""Decoding rules: logits of the masked positions of a block -> which tokens to commit.

Pure functions. The mask token's logit is -inf before they are called. A rule commits at least
one token; ties go to the lowest position. N masked positions, V vocabulary.
"""

import math

import torch
from torch import Tensor

from a2d_ray.diffusion.randomness import uniform
from a2d_ray.diffusion.schedules import ScheduleName, alpha

_CHOICE, _ORDER = 8, 9  # streams of random numbers apart from those of training noise


def choose_tokens(
    logits_NV: Tensor, *, temperature: float = 0.0, u_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The token that each position would take, and its confidence.

    Args:
        logits_NV: logits, any float type; computed in float32.
        temperature: 0 takes the most likely token, otherwise one is drawn by inverse CDF.
        u_N: uniform numbers in [0, 1) for the draw.

    Returns:
        ids int64 [N], confidence float32 [N] = exp(logit - logsumexp) at temperature 1.
    """
    logits_NV = logits_NV.float()
    if temperature == 0 or u_N is None:
        ids_N = logits_NV.argmax(-1)
    else:
        cumulative = torch.softmax(logits_NV.double() / temperature, -1).cumsum(-1)
        threshold = u_N.to(cumulative)[:, None] * cumulative[:, -1:]
        ids_N = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
        ids_N = ids_N.clamp(max=logits_NV.shape[-1] - 1)
    chosen_N = logits_NV.gather(-1, ids_N[:, None])[:, 0]
    return ids_N, torch.exp(chosen_N - logits_NV.logsumexp(-1))


def position_uniform(position_N: Tensor, *, seed: int, step: int, is_order: bool = False) -> Tensor:
    """One uniform number per position: a function of (seed, position, denoise step)."""
    zero_N = torch.zeros_like(position_N)
    kind = _ORDER if is_order else _CHOICE
    return uniform(kind, seed, 0, zero_N, zero_N + step, position_N)


def commit_counts(num_masks: int, num_steps: int, schedule: ScheduleName = "linear") -> list[int]:
    """How many tokens each denoise step of a block commits (rule ``steps``).

    For j = 0..S-1 with t = (S-j)/S, s = (S-j-1)/S: round-half-even of
    num_left x (1 - (1 - alpha(s)) / (1 - alpha(t))), at most num_left; zeros are dropped.

    Args:
        num_masks: masked tokens of the block.
        num_steps: steps of the block, S.
        schedule: alpha(t).

    Returns:
        Positive counts that add up to num_masks.

    Source: the public A2D sampler (dLLM, 2602.22661), in its precision: alpha in float32.
    """
    times = torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps
    masked_share = 1 - alpha(schedule, times.float())
    counts, left = [], num_masks
    for ratio in (1 - masked_share[1:] / masked_share[:-1]).tolist():
        count = min(round(left * ratio), left)
        left -= count
        if count > 0:
            counts.append(count)
    return counts


def steps_per_block(num_steps: int | None, max_new_tokens: int, block_size: int) -> int:
    """Denoise steps of one block when the answer gets `num_steps` in total; None: one per token."""
    if num_steps is None:
        return block_size
    return math.ceil(num_steps / math.ceil(max_new_tokens / block_size))


def select_top(score_N: Tensor, count: int) -> Tensor:
    """Rule ``steps``: the `count` highest scores (confidence, or uniform numbers); bool [N]."""
    order = torch.argsort(score_N, descending=True, stable=True)
    is_selected_N = torch.zeros_like(score_N, dtype=torch.bool)
    is_selected_N[order[:count]] = True
    return is_selected_N


def select_threshold(confidence_N: Tensor, threshold: float) -> Tensor:
    """Rule ``threshold``: all above it, else the most confident one; bool [N].

    Source: Fast-dLLM, arXiv 2505.22618.
    """
    is_selected_N = confidence_N > threshold
    return is_selected_N | (select_top(confidence_N, 1) & ~is_selected_N.any())
