"""Penalties on tokens that were used before, as in OpenAI's API and vLLM."""

from collections.abc import Sequence

import torch
from torch import Tensor

from a2d_ray.generation.decoding.params import SamplingParams


def has_penalties(params: SamplingParams) -> bool:
    """Whether any penalty is asked for."""
    asked = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1)
    return any(value != 0 for value in asked)


def penalize(
    logits_NV: Tensor,
    params: SamplingParams,
    known_ids: Sequence[int],
    answer_counts_V: Tensor | None,
) -> None:
    """Lowers, in place, the logits of tokens that were used before.

    Repetition (of the prompt or the answer) divides positive logits and multiplies negative ones;
    frequency takes penalty x count, presence takes the penalty once, both of the answer alone.

    Args:
        logits_NV: float32.
        params: the penalties.
        known_ids: the prompt.
        answer_counts_V: how often each id is committed; None: none is.

    Source: repetition: CTRL, arXiv 1909.05858; the others: OpenAI's API.
    """
    counts_V = answer_counts_V
    if counts_V is None:
        counts_V = logits_NV.new_zeros(logits_NV.shape[-1], dtype=torch.int64)
    is_used_V = counts_V > 0
    is_used_V[list(known_ids)] = True
    factor_V = torch.where(is_used_V, params.repetition_penalty, 1.0)
    logits_NV.copy_(torch.where(logits_NV > 0, logits_NV / factor_V, logits_NV * factor_V))
    logits_NV -= params.frequency_penalty * counts_V + params.presence_penalty * (counts_V > 0)
