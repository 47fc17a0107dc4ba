"""Intervals and tests against values from the literature and from enumeration."""

import itertools
import math
import random

import pytest

from a2d_ray.evaluation.report.statistics import compare, estimate, monte_carlo_stderr


def test_wilson_interval_of_a_textbook_case():
    """15 of 148: 0.1014, interval 0.0624 to 0.1605 (Newcombe 1998, score method)."""
    found = estimate([1.0] * 15 + [0.0] * 133)
    assert (found.value, found.low, found.high) == pytest.approx((0.1014, 0.0624, 0.1605), abs=5e-5)
    assert estimate([0.0] * 10).low == 0 and 0.2 < estimate([0.0] * 10).high < 0.35


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = random.Random(1)
    covered = 0
    for _ in range(400):
        lengths = [rng.uniform(5, 50) for _ in range(60)]
        pairs = [(3 * n + rng.gauss(0, n), n) for n in lengths]  # ratio of means: 3
        found = estimate(pairs)
        covered += found.low <= 3 <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def test_mcnemar_is_the_exact_binomial_test():
    first = [1.0] * 20 + [0.0] * 8 + [1.0] * 2
    second = [1.0] * 20 + [1.0] * 8 + [0.0] * 2
    found = compare(first, second)
    tail = sum(math.comb(10, k) for k in range(3)) / 2**10
    assert found.p_value == pytest.approx(2 * tail) and found.test == "McNemar, exact"
    assert found.difference.value == pytest.approx(6 / 30)
    assert compare(first, first).p_value == 1


@pytest.mark.parametrize(
    ("table", "published"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), method 10
        ((14, 5, 0, 22), (0.011, 0.226)),  # Altman et al. (2000), Statistics with Confidence, 6.2
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen, Laake (2014)
    ],
)
def test_paired_interval_of_published_cases(table, published):
    """Cells: both right, only the second, only the first, neither."""
    both, gained, lost, neither = table
    first = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    second = [1.0] * (both + gained) + [0.0] * (lost + neither)
    found = compare(first, second).difference
    assert (found.low, found.high) == pytest.approx(published, abs=6e-4)
    mirrored = compare(second, first).difference
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize("scores", [[1.0] * 20, [0.0] * 20, [1.0] * 16 + [0.0] * 4, [1.0]])
def test_models_that_agree_on_few_documents_may_still_differ(scores):
    found = compare(scores, scores).difference
    assert found.low < -0.1 and found.high > 0.1 and found.value == 0


def test_paired_intervals_cover_the_truth_as_often_as_they_say():
    rng = random.Random(2)
    covered = 0
    for _ in range(400):
        rows = rng.choices([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)], (80, 6, 4, 10), k=50)
        found = compare([a for a, _ in rows], [b for _, b in rows]).difference
        covered += found.low <= 0.02 <= found.high
    assert covered / 400 >= 0.94


@pytest.mark.parametrize("values", [[0.5] * 9, [0.7], [(3.0, 2.0), (0.3, 0.2)]])
def test_scores_without_spread_have_no_known_interval(values):
    found = estimate(values)
    assert (found.low, found.high) == (-math.inf, math.inf) and found.interval() == "unknown"
    assert compare(values, values).difference.interval("+.4f") == "unknown"


def test_sign_flips_are_enumerated_where_they_are_few():
    differences = [0.3, 0.1, 0.5, -0.2, 0.4, 0.25, 0.15, -0.05]
    found = compare([0.5] * 8, [0.5 + d for d in differences])
    total = abs(sum(differences))
    signs = itertools.product((1, -1), repeat=8)
    flipped = [abs(sum(s * d for s, d in zip(row, differences, strict=True))) for row in signs]
    exact = sum(value >= total - 1e-9 for value in flipped) / 256
    assert found.p_value == exact
    assert found.difference.low < found.difference.value < found.difference.high


def test_reports_give_ratios_as_lists():
    first = [[3.0, 2], [0.3, 1], [1.0, 4]]
    second = [[3.5, 2], [0.4, 1], [2.0, 4]]
    found = compare(first, second)
    assert found.test == "sign flips" and 0 < found.p_value < 1


def test_draws_leave_an_error_in_the_unit_of_the_metric():
    pairs, stderrs = [(-30.0, 10), (-50.0, 15)], [3.0, 4.0]
    word = math.exp(80 / 25)
    assert monte_carlo_stderr("bits_per_byte", 0, pairs, stderrs) == 5 / 25 / math.log(2)
    assert monte_carlo_stderr("word_perplexity", word, pairs, stderrs) == pytest.approx(word / 5)
    assert monte_carlo_stderr("perplexity", 2.0, [-1.0, -2.0], stderrs) == 5.0
    assert monte_carlo_stderr("acc", 0.5, [1.0, 0.0], stderrs) is None
    assert monte_carlo_stderr("bits_per_byte", 0, pairs, [3.0, None]) is None


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        compare([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no documents"):
        estimate([])
