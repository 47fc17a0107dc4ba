"""Confidence intervals and paired tests of scores: scipy's, where it has them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

Z95 = NormalDist().inv_cdf(0.975)
NUM_FLIPS = 10_000
NO_SPREAD = 1e-12
BITS = {"nelbo_bits_per_byte", "bits_per_byte"}  # of log-likelihoods: their sum / size / log(2)
PERPLEXITIES = {"perplexity", "word_perplexity", "byte_perplexity"}  # exp(-their sum / size)

Value = float | Sequence[float]
"""A score of one document: a number, or (numerator, denominator) of a ratio of sums."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval.

    Attributes:
        value: mean, or ratio of sums.
        low, high: of the interval: Wilson's for zeros and ones (Newcombe's for their paired
            difference), else normal; infinite where the documents show no spread to tell it from.
    """

    value: float
    low: float
    high: float

    def interval(self, form: str = ".4f") -> str:
        """As text, each end in `form`."""
        if math.isinf(self.low):
            return "unknown"
        return f"{self.low:{form}} to {self.high:{form}}"


def estimate(values: Sequence[Value]) -> Estimate:
    """Mean and 95 % interval over documents.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there are no documents to estimate from")
    mean, deviations = _linearised(values)
    if all(value in (0.0, 1.0) for value in values):
        return _wilson(values.count(1.0), len(values))
    return _normal(mean, deviations)


def _normal(mean: float, deviations: Sequence[float]) -> Estimate:
    """Normal interval; infinite if the deviations are none (but for rounding) or one."""
    spread = stdev(deviations) if len(deviations) > 1 else 0.0
    half = Z95 * spread / math.sqrt(len(deviations)) if spread > NO_SPREAD else math.inf
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


def _wilson(num_right: int, n: int) -> Estimate:
    """Wilson (1927): an interval for proportions that holds near 0 and 1."""
    from scipy.stats import binomtest

    low, high = map(float, binomtest(num_right, n).proportion_ci(method="wilson"))
    return Estimate(value=num_right / n, low=low, high=high)


def root_of_squares(stderrs: Iterable[float | None]) -> float | None:
    """Standard error of a sum of independent terms; None if one is not known."""
    known = list(stderrs)
    if any(one is None for one in known):
        return None
    return math.hypot(*(one for one in known if one is not None))


def monte_carlo_stderr(
    metric: str, value: float, values: Sequence[Value], nats_stderrs: Sequence[float | None]
) -> float | None:
    """Standard error that the noise draws leave in a sum of log-likelihoods, in the metric's unit.

    Args:
        metric: name of the metric.
        value: of all documents.
        values: of each: (log-likelihood, its size in bytes or words), or a log-likelihood alone.
        nats_stderrs: standard error of each log-likelihood over its draws; None: not known.

    Returns:
        None for a metric that is no sum of log-likelihoods (as the accuracy of choices), and where
        an error is not known.
    """
    total = root_of_squares(nats_stderrs)
    if total is None or metric not in BITS | PERPLEXITIES:
        return None
    size = math.fsum(one[1] if isinstance(one, Sequence) else 1 for one in values)
    return total / size * (1 / math.log(2) if metric in BITS else value)


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
    one = estimate(first)
    other = estimate(second)
    if all(value in (0.0, 1.0) for value in [*first, *second]):
        cells = Counter(zip(first, second, strict=True))
        difference = _newcombe(cells)
        p_value = _mcnemar(cells)
        test = "McNemar, exact"
    else:
        pairs = zip(_linearised(first)[1], _linearised(second)[1], strict=True)
        deviations = [b - a for a, b in pairs]
        mean = other.value - one.value
        difference = _normal(mean, deviations)
        p_value = _sign_flip([d + mean for d in deviations])
        test = "sign flips"
    return Comparison(
        first=one,
        second=other,
        difference=difference,
        p_value=p_value,
        test=test,
        num_documents=len(first),
    )


def _newcombe(cells: Counter[tuple[Value, Value]]) -> Estimate:
    """Second minus first share: both Wilson intervals, squared and added with their correlation.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10.
    """
    n = cells.total()
    both = cells[1.0, 1.0]
    neither = cells[0.0, 0.0]
    gained = cells[0.0, 1.0]
    lost = cells[1.0, 0.0]
    one = _wilson(both + lost, n)
    other = _wilson(both + gained, n)
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    shared = both * neither - gained * lost
    corrected = max(shared - n / 2, 0.0) if shared > 0 else shared
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def half(up: float, down: float) -> float:
        return math.sqrt(up * up - 2 * phi * up * down + down * down)

    value = other.value - one.value
    return Estimate(
        value=value,
        low=value - half(other.value - other.low, one.high - one.value),
        high=value + half(other.high - other.value, one.value - one.low),
    )


def _mcnemar(cells: Counter[tuple[Value, Value]]) -> float:
    """Exact two-sided binomial test of the documents that only one of both got right."""
    from scipy.stats import binomtest

    gained = cells[0.0, 1.0]
    num_unequal = gained + cells[1.0, 0.0]
    return float(binomtest(gained, num_unequal).pvalue) if num_unequal else 1.0


def _sign_flip(differences: Sequence[float]) -> float:
    """Share of signs whose mean is as far from zero: all of them, or many of a fixed seed."""
    from scipy.stats import permutation_test

    if len(differences) < 2:
        return 1.0
    found = permutation_test(
        (differences,),
        lambda d, axis: d.mean(axis),
        permutation_type="samples",
        n_resamples=NUM_FLIPS,
        batch=NUM_FLIPS // 10,
        rng=0,
    )
    return float(found.pvalue)
