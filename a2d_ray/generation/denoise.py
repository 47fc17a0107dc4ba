"""One denoise step of a window: logits of its masked positions -> what to commit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from a2d_ray.diffusion.decoding import (
    choose_tokens,
    commit_counts,
    position_uniform,
    select_threshold,
    select_top,
    steps_per_block,
)
from a2d_ray.generation.params import SamplingParams


def window_counts(num_masks: int, params: SamplingParams, block_size: int) -> list[int]:
    """Tokens that each step of a window of `num_masks` tokens commits under rule ``steps``."""
    num_steps = steps_per_block(params.steps, params.max_new_tokens, block_size)
    return commit_counts(num_masks, num_steps)


def commit_step(
    logits_NV: Tensor,
    position_N: Tensor,
    params: SamplingParams,
    *,
    step: int,
    counts: Sequence[int],
    mask_id: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids for the N masked positions, their confidence, and which are committed in this step.

    Args:
        logits_NV: float32 logits; changed in place.
        position_N: canvas positions (with the seed and step they fix the random numbers).
        params: rule, temperature, seed.
        step: denoise step within the window, from 0.
        counts: see `window_counts`.
        mask_id: id that is excluded; None keeps it.

    Returns:
        ids int64 [N], confidence float32 [N], is_committed bool [N] with at least one True.
    """
    if mask_id is not None:
        logits_NV[:, mask_id] = -torch.inf
    u_N = None
    if params.temperature > 0:
        u_N = position_uniform(position_N, seed=params.seed, step=step)
    ids_N, confidence_N = choose_tokens(logits_NV, temperature=params.temperature, u_N=u_N)
    if params.rule == "threshold":
        return ids_N, confidence_N, select_threshold(confidence_N, params.threshold)
    score_N = confidence_N
    if params.remasking == "random":
        score_N = position_uniform(position_N, seed=params.seed, step=step, is_order=True)
    return ids_N, confidence_N, select_top(score_N, counts[step])
