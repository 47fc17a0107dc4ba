"""Noise schedules: alpha(t), the share of tokens kept at time t in [0, 1], and the NELBO weight."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHT_EPS = 1e-6


class Schedule(NamedTuple):
    """A function of times t in [0, 1], any shape, and its derivative."""

    alpha: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


SCHEDULES = {
    "linear": Schedule(lambda t: 1 - t, lambda t: torch.full_like(t, -1.0)),
    "cosine": Schedule(
        lambda t: 1 - torch.cos(torch.pi / 2 * (1 - t)),
        lambda t: -torch.pi / 2 * torch.sin(torch.pi / 2 * (1 - t)),
    ),
}
"""By name. Source: MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992."""


def find_schedule(name: str) -> Schedule:
    """The schedule of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SCHEDULES:
        raise ValueError(f"there is no noise schedule {name!r}: choose from {sorted(SCHEDULES)}")
    return SCHEDULES[name]


def alpha(name: str, t: Tensor) -> Tensor:
    """Share of tokens kept at times t in [0, 1], any shape."""
    return find_schedule(name).alpha(t)


def alpha_derivative(name: str, t: Tensor) -> Tensor:
    """d alpha / dt at times t in [0, 1], any shape."""
    return find_schedule(name).derivative(t)


def nelbo_weight(name: str, t: Tensor) -> Tensor:
    """Weight of a masked token's cross-entropy, -alpha'(t) / (1 - alpha(t) + 1e-6).

    With it the expected loss over t ~ U(0, 1) is the negative evidence lower bound, in nats.
    Source: MDLM, arXiv 2406.07524, eq. 10.
    """
    return -alpha_derivative(name, t) / (1 - alpha(name, t) + WEIGHT_EPS)


def complement_weight(name: str, t: Tensor) -> Tensor:
    """Weight in the complementary view, where a token is masked with probability alpha(t).

    The NELBO is an integral of dp/p over the masking probability p. The complement has
    p = alpha(t), where t ~ U(0, 1) has density 1/|alpha'(t)|: -alpha'(t) / (alpha(t) + 1e-6).
    """
    return -alpha_derivative(name, t) / (alpha(name, t) + WEIGHT_EPS)
