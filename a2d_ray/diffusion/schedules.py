"""Noise schedules: alpha(t), the share of tokens kept at time t in [0, 1], and the NELBO weight."""

from typing import Literal

import torch
from torch import Tensor

ScheduleName = Literal["linear", "cosine"]
WEIGHT_EPS = 1e-6


def alpha(name: ScheduleName, t: Tensor) -> Tensor:
    """Share of tokens kept at time t: linear 1 - t, cosine 1 - cos(pi/2 (1 - t)).

    Args:
        name: schedule.
        t: times in [0, 1], any shape.

    Source: MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992.
    """
    return 1 - t if name == "linear" else 1 - torch.cos(torch.pi / 2 * (1 - t))


def alpha_derivative(name: ScheduleName, t: Tensor) -> Tensor:
    """d alpha / dt at times t in [0, 1], any shape."""
    if name == "linear":
        return torch.full_like(t, -1.0)
    return -torch.pi / 2 * torch.sin(torch.pi / 2 * (1 - t))


def nelbo_weight(name: ScheduleName, t: Tensor) -> Tensor:
    """Weight of a masked token's cross-entropy, -alpha'(t) / (1 - alpha(t) + 1e-6).

    With it the expected loss over t ~ U(0, 1) is the negative evidence lower bound, in nats.
    Source: MDLM, arXiv 2406.07524, eq. 10.
    """
    return -alpha_derivative(name, t) / (1 - alpha(name, t) + WEIGHT_EPS)


def complement_weight(name: ScheduleName, t: Tensor) -> Tensor:
    """Weight in the complementary view, where a token is masked with probability alpha(t).

    The NELBO is an integral of dp/p over the masking probability p. The complement has
    p = alpha(t), where t ~ U(0, 1) has density 1/|alpha'(t)|: -alpha'(t) / (alpha(t) + 1e-6).
    """
    return -alpha_derivative(name, t) / (alpha(name, t) + WEIGHT_EPS)
