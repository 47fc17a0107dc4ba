"""Intervals and tests against values from the literature and from enumeration."""

import itertools
import math
import random

import pytest

from a2d_ray.evaluation.statistics import compare, estimate


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


def test_sign_flips_agree_with_enumeration():
    differences = [0.3, 0.1, 0.5, -0.2, 0.4, 0.25, 0.15, -0.05]
    found = compare([0.5] * 8, [0.5 + d for d in differences])
    total = abs(sum(differences))
    signs = itertools.product((1, -1), repeat=8)
    flipped = [abs(sum(s * d for s, d in zip(row, differences, strict=True))) for row in signs]
    exact = sum(value >= total - 1e-9 for value in flipped) / 256
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert found.difference.low < found.difference.value < found.difference.high


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        compare([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no documents"):
        estimate([])
