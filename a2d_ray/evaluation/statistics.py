"""Confidence intervals and paired tests of scores. Pure Python."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

Z95 = NormalDist().inv_cdf(0.975)
NUM_FLIPS = 10_000

Value = float | Sequence[float]
"""A score of one document: a number, or (numerator, denominator) of a ratio of sums."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval.

    Attributes:
        value: mean, or ratio of sums.
        low, high: of the interval: Wilson's for zeros and ones, else normal.
    """

    value: float
    low: float
    high: float


def estimate(values: Sequence[Value]) -> Estimate:
    """Mean and 95 % interval over documents.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there are no documents to estimate from")
    mean, deviations = _linearised(values)
    if all(value in (0.0, 1.0) for value in values):
        return _wilson(mean, len(values))
    half = Z95 * stdev(deviations) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(value=mean, low=mean - half, high=mean + half)


def _linearised(values: Sequence[Value]) -> tuple[float, list[float]]:
    """The score, and each document's share of its deviation (delta method for ratios)."""
    if isinstance(values[0], Sequence):
        pairs = [(value[0], value[1]) for value in values]  # type: ignore[index]
        below = fmean(second for _, second in pairs)
        ratio = fmean(first for first, _ in pairs) / below
        return ratio, [(first - ratio * second) / below for first, second in pairs]
    numbers = [float(value) for value in values]  # type: ignore[arg-type]
    mean = fmean(numbers)
    return mean, [number - mean for number in numbers]


def _wilson(share: float, n: int) -> Estimate:
    """Wilson (1927): an interval for proportions that holds near 0 and 1."""
    spread = Z95 * Z95 / n
    center = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low = center - half if share > 0 else 0.0
    high = center + half if share < 1 else 1.0
    return Estimate(value=share, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same documents.

    Attributes:
        first, second: their scores on these documents.
        difference: second minus first, with its paired 95 % interval.
        p_value: two-sided: McNemar's exact test for zeros and ones, else a sign-flip test.
        test: which one.
        num_documents: that both have.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    p_value: float
    test: str
    num_documents: int


def compare(first: Sequence[Value], second: Sequence[Value]) -> Comparison:
    """Compares scores of the same documents in the same order.

    Raises:
        ValueError: no documents, or not as many of both.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} documents cannot be paired")
    one, other = estimate(first), estimate(second)
    deviations = [b - a for a, b in zip(_linearised(first)[1], _linearised(second)[1], strict=True)]
    mean, n = other.value - one.value, len(first)
    half = Z95 * stdev(deviations) / math.sqrt(n) if n > 1 else math.inf
    is_binary = all(value in (0.0, 1.0) for value in [*first, *second])
    p_value = _mcnemar(first, second) if is_binary else _sign_flip([d + mean for d in deviations])
    return Comparison(
        first=one,
        second=other,
        difference=Estimate(value=mean, low=mean - half, high=mean + half),
        p_value=p_value,
        test="McNemar, exact" if is_binary else "sign flips",
        num_documents=n,
    )


def _mcnemar(first: Sequence[Value], second: Sequence[Value]) -> float:
    """Exact two-sided binomial test of the documents that only one of both got right."""
    gained = sum(1 for a, b in zip(first, second, strict=True) if a == 0.0 and b == 1.0)
    lost = sum(1 for a, b in zip(first, second, strict=True) if a == 1.0 and b == 0.0)
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def _sign_flip(differences: Sequence[float]) -> float:
    """Share of random signs whose mean is as far from zero; fixed seed."""
    observed = abs(math.fsum(differences))
    rng = random.Random(0)
    hits = 0
    for _ in range(NUM_FLIPS):
        total = math.fsum(d if rng.random() < 0.5 else -d for d in differences)
        hits += abs(total) >= observed * (1 - 1e-12)
    return (hits + 1) / (NUM_FLIPS + 1)
