"""Decoding rules: which masked places of each request a step commits.

Pure functions over all requests of a rule at once; they never wait for the device. A rule selects
at least one masked place of each request; ties go to the lowest. `SELECTORS` names them.

R requests of one rule, B places of the widest one, N places of all of them that logits were asked
for, V vocabulary. What a rule says of a place that is not masked does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from a2d_ray.diffusion.decoding import entropy


@dataclass(frozen=True, kw_only=True)
class Masked:
    """What a rule looks at.

    Attributes:
        is_masked_RB: bool; the places of a request are ascending, from column 0 on.
        confidence_RB: probability of the token that each would take, float32; -inf: not masked.
        position_RB: canvas positions, int64.
        order_RB: what rule ``steps`` sorts by, the highest first.
        count_R1: how many the schedule gives to this step, int64 (rule ``steps``).
        is_kept_RB: bool, whether the token that it would take is the one that it has: a draft.
        num_stable_RB: for how many steps the distributions hardly changed, int64 (rule ``klass``).
        logits_NV: float32.
        place_N: row times B plus column of each of the N.
    """

    is_masked_RB: Tensor
    confidence_RB: Tensor
    position_RB: Tensor
    order_RB: Tensor
    count_R1: Tensor
    is_kept_RB: Tensor
    num_stable_RB: Tensor
    logits_NV: Tensor
    place_N: Tensor

    def grid(self, values_N: Tensor, fill: float) -> Tensor:
        """Values of the N places as [R, B], with `fill` where no place is masked."""
        values_RB = on_grid(values_N, self.place_N, self.is_masked_RB.shape, fill)
        return torch.where(self.is_masked_RB, values_RB, fill)

    @cached_property
    def entropy_RB(self) -> Tensor:  # noqa: N802
        """Nats, float32; inf where not masked."""
        return self.grid(entropy(self.logits_NV), torch.inf)


def on_grid(values_N: Tensor, place_N: Tensor, shape: torch.Size, fill: float) -> Tensor:
    """Values at their places of a grid, `fill` elsewhere."""
    flat = torch.full((shape.numel(),), fill, dtype=values_N.dtype, device=values_N.device)
    return flat.index_copy_(0, place_N, values_N).view(shape)


def select_top(score_RB: Tensor, count_R1: Tensor) -> Tensor:
    """Rule ``steps``: the `count` highest scores: confidence, random numbers, or -position.

    Source: LLaDA, arXiv 2502.09992 (low-confidence and random remasking).
    """
    order_RB = torch.argsort(score_RB, dim=1, descending=True, stable=True)
    is_first_RB = _numbers(score_RB) <= count_R1.clamp(min=1)
    is_selected_RB = torch.zeros_like(score_RB, dtype=torch.bool)
    return is_selected_RB.scatter_(1, order_RB, is_first_RB)


def select_threshold(confidence_RB: Tensor, threshold_R1: Tensor) -> Tensor:
    """Rule ``threshold``: all with confidence > threshold, else the most confident one.

    Source: Fast-dLLM, arXiv 2505.22618.
    """
    return _or_best(confidence_RB > threshold_R1, confidence_RB)


def select_factor(confidence_RB: Tensor, factor_R1: Tensor) -> Tensor:
    """Rule ``factor``: the n most confident, n the largest with (n + 1)(1 - conf_(n)) < factor.

    Source: Fast-dLLM, arXiv 2505.22618, factor-based parallel decoding.
    """
    sorted_RB = confidence_RB.sort(dim=1, descending=True, stable=True).values
    n_RB = _numbers(sorted_RB)
    return select_top(confidence_RB, _largest((n_RB + 1) * (1 - sorted_RB) < factor_R1))


def select_frechet(confidence_RB: Tensor, delta_R1: Tensor) -> Tensor:
    """Rule ``frechet``: the n most confident, n the largest whose bound exceeds delta.

    The Frechet bound on the joint probability of n tokens is sum_{j<=n} conf_(j) - (n - 1); it
    must exceed the chance (1 - conf_(n)) of another token at the last one by delta.
    Source: Fast-dLLM++ (Frechet-guided parallel decoding).
    """
    sorted_RB = confidence_RB.sort(dim=1, descending=True, stable=True).values
    n_RB = _numbers(sorted_RB)
    bound_RB = sorted_RB.cumsum(1) - (n_RB - 1) - (1 - sorted_RB)
    return select_top(confidence_RB, _largest(bound_RB > delta_R1))


def select_entropy_bound(entropy_RB: Tensor, gamma_R1: Tensor) -> Tensor:
    """Rule ``entropy_bound``: the n of lowest entropy, n the largest with sum_{j<n} H_(j) <= gamma.

    Source: EB-Sampler, "Accelerated sampling from masked diffusion models via entropy bounded
    unmasking", arXiv 2505.24857.
    """
    sorted_RB = entropy_RB.sort(dim=1, stable=True).values
    return select_top(-entropy_RB, _largest(sorted_RB.cumsum(1) - sorted_RB <= gamma_R1))


def select_entropy(
    entropy_RB: Tensor, position_RB: Tensor, *, threshold_R1: Tensor, slope_R1: Tensor
) -> Tensor:
    """Rule ``entropy``: H + slope x (position - first masked) <= threshold, else the lowest.

    The slope asks more of tokens far from the text that is known. Entropy is inf where a place is
    not masked.
    Source: WeDLM (entropy with a distance penalty).
    """
    is_masked_RB = entropy_RB < torch.inf
    first_R1 = torch.where(is_masked_RB, position_RB, 2**62).amin(1, keepdim=True)
    cost_RB = entropy_RB + slope_R1 * (position_RB - first_R1)
    return _or_best(cost_RB <= threshold_R1, -cost_RB)


def select_klass(
    confidence_RB: Tensor, num_stable_RB: Tensor, *, threshold_R1: Tensor, num_steps: int = 2
) -> Tensor:
    """Rule ``klass``: confident, and its distribution has settled; else the most confident one.

    Args:
        confidence_RB: float32.
        num_stable_RB: steps in a row in which the KL divergence to the step before was small.
        threshold_R1: confidence must exceed it.
        num_steps: how many stable steps are asked for.

    Source: KLASS, arXiv 2511.05664.
    """
    is_sure_RB = (confidence_RB > threshold_R1) & (num_stable_RB >= num_steps)
    return _or_best(is_sure_RB, confidence_RB)


def select_prefix(confidence_RB: Tensor, is_masked_RB: Tensor, threshold_R1: Tensor) -> Tensor:
    """Rule ``prefix``: from the first masked position rightwards while confidence >= threshold.

    Source: SDLM, arXiv 2509.24007 (longest prefix above a confidence).
    """
    is_passed_RB = ((confidence_RB >= threshold_R1) | ~is_masked_RB).cumprod(1).bool()
    is_first_RB = is_masked_RB & (is_masked_RB.cumsum(1) == 1)
    return is_passed_RB | is_first_RB


def select_kept(is_kept_RB: Tensor) -> Tensor:
    """Rules ``ar`` and ``speculate``: drafts that are what the AR mode writes, and one token more.

    Source: TiDAR, arXiv 2511.08923; Leviathan et al., arXiv 2211.17192.
    """
    before_RB = torch.cat([torch.ones_like(is_kept_RB[:, :1]), is_kept_RB[:, :-1]], dim=1)
    return before_RB.cumprod(1).bool()


def select_remask(confidence_N: Tensor, may_fall_N: Tensor, *, threshold_N: Tensor) -> Tensor:
    """Option ``remask``: committed tokens whose probability fell below a bound; may be none.

    Args:
        confidence_N: probability of each committed token under the present logits.
        may_fall_N: bool, whether it may be masked again: every window has to end.
        threshold_N: the bounds.

    Source: LLaDA2.x (token-to-mask editing).
    """
    return may_fall_N & (confidence_N < threshold_N)


def _numbers(values_RB: Tensor) -> Tensor:
    """1 ... B, as [R, B]."""
    return torch.arange(1, values_RB.shape[1] + 1, device=values_RB.device).expand_as(values_RB)


def _largest(holds_RB: Tensor) -> Tensor:
    """The largest n (from 1) for which it holds, int64 [R, 1]; 0 if none."""
    return (holds_RB * _numbers(holds_RB)).amax(1, keepdim=True)


def _or_best(is_selected_RB: Tensor, score_RB: Tensor) -> Tensor:
    best_R1 = score_RB.argmax(1, keepdim=True)
    is_best_RB = torch.zeros_like(is_selected_RB).scatter_(1, best_R1, True)
    return is_selected_RB | (is_best_RB & ~is_selected_RB.any(1, keepdim=True))


Selector = Callable[[Masked, Any], Tensor]
"""(what it looks at, its options) -> bool [R, B]. A number among the options is float32 [R, 1]."""

SELECTORS: dict[str, Selector] = {
    "threshold": lambda masked, options: select_threshold(masked.confidence_RB, options.threshold),
    "steps": lambda masked, options: select_top(masked.order_RB, masked.count_R1),
    "factor": lambda masked, options: select_factor(masked.confidence_RB, options.factor),
    "frechet": lambda masked, options: select_frechet(masked.confidence_RB, options.delta),
    "entropy_bound": lambda masked, options: select_entropy_bound(masked.entropy_RB, options.gamma),
    "prefix": lambda masked, options: select_prefix(
        masked.confidence_RB, masked.is_masked_RB, options.threshold
    ),
    "klass": lambda masked, options: select_klass(
        masked.confidence_RB, masked.num_stable_RB, threshold_R1=options.threshold
    ),
    "entropy": lambda masked, options: select_entropy(
        masked.entropy_RB,
        masked.position_RB,
        threshold_R1=options.entropy_threshold,
        slope_R1=options.entropy_slope,
    ),
    "ar": lambda masked, options: select_kept(masked.is_kept_RB),
    "speculate": lambda masked, options: select_kept(masked.is_kept_RB),
}
"""The rules of `a2d_ray.config.rules.RULES`; each reads the options that its row names there."""
