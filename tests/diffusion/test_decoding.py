"""Decoding rules: hand-computed selections, and the laws that all of them obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.config import AR_RULES
from a2d_ray.diffusion import decoding as d
from tests.closeness import assert_close

CONFIDENCE = torch.tensor([0.5, 0.95, 0.9, 0.99, 0.2])
# Entropies as (p, 1 - p) of a coin would not be round; these are chosen.
ENTROPY = torch.tensor([0.3, 0.02, 0.05, 0.0, 1.5])


def picked(is_selected):
    return is_selected.nonzero()[:, 0].tolist()


def test_steps_takes_the_most_confident():
    assert picked(d.select_top(CONFIDENCE, 2)) == [1, 3]


def test_threshold_takes_what_exceeds_it_else_the_best():
    assert picked(d.select_threshold(CONFIDENCE, 0.9)) == [1, 3]  # 0.9 does not exceed 0.9
    assert picked(d.select_threshold(CONFIDENCE, 0.995)) == [3]


@pytest.mark.parametrize(
    ("factor", "expected"),
    # (n + 1)(1 - conf_n) over 0.99, 0.95, 0.9, 0.5, 0.2: 0.02, 0.15, 0.4, 2.5, 4.8
    [(0.01, [3]), (0.1, [3]), (0.2, [1, 3]), (1.0, [1, 2, 3]), (2.6, [0, 1, 2, 3])],
)
def test_factor(factor, expected):
    assert picked(d.select_factor(CONFIDENCE, factor)) == expected


@pytest.mark.parametrize(
    ("delta", "expected"),
    # sum - (n - 1) - (1 - conf_n): 0.98, 0.89, 0.74, -0.16, ...
    [(0.99, [3]), (0.9, [3]), (0.8, [1, 3]), (0.25, [1, 2, 3]), (-0.2, [0, 1, 2, 3])],
)
def test_frechet(delta, expected):
    assert picked(d.select_frechet(CONFIDENCE, delta)) == expected


@pytest.mark.parametrize(
    ("gamma", "expected"),
    # Sums of the entropies before the n-th: 0, 0, 0.02, 0.07, 0.37
    [(0.0, [1, 3]), (0.02, [1, 2, 3]), (0.1, [0, 1, 2, 3]), (0.4, [0, 1, 2, 3, 4])],
)
def test_entropy_bound(gamma, expected):
    assert picked(d.select_entropy_bound(ENTROPY, gamma)) == expected


def test_entropy_asks_more_of_what_is_far_away():
    position = torch.tensor([10, 11, 12, 20, 21])

    def chosen(threshold, slope):
        return picked(d.select_entropy(ENTROPY, position, threshold=threshold, slope=slope))

    assert chosen(0.4, 0.0) == [0, 1, 2, 3]
    assert chosen(0.4, 0.05) == [0, 1, 2]  # position 20: 0 + 10 x 0.05
    assert chosen(0.0, 0.05) == [1]  # the lowest cost, 0.02 + 0.05


def test_klass_waits_until_a_distribution_has_settled():
    stable = torch.tensor([5, 1, 2, 0, 9])
    assert picked(d.select_klass(CONFIDENCE, stable, threshold=0.4)) == [0, 2]
    assert picked(d.select_klass(CONFIDENCE, stable, threshold=0.9)) == [3]


def test_prefix_is_a_run_from_the_left():
    confidence = torch.tensor([0.95, 0.9, 0.5, 0.99])
    assert picked(d.select_prefix(confidence, 0.9)) == [0, 1]  # 0.9 is enough
    assert picked(d.select_prefix(confidence, 0.97)) == [0]


def test_remask_takes_what_fell_and_may_still_come_back():
    confidence, times = torch.tensor([0.1, 0.1, 0.6]), torch.tensor([0, 3, 0])
    assert picked(d.select_remask(confidence, times, threshold=0.3)) == [0]


CASES = {  # name: (function of confidence and parameter, parameters from strict to generous)
    "steps": (lambda c, p: d.select_top(c, p), [1, 2, 4]),
    "threshold": (d.select_threshold, [0.99, 0.7, 0.3]),
    "factor": (d.select_factor, [0.1, 1.0, 3.0]),
    "frechet": (d.select_frechet, [0.9, 0.25, 0.0]),
    "entropy_bound": (lambda c, p: d.select_entropy_bound(-c.log(), p), [0.0, 0.1, 1.0]),
    "entropy": (
        lambda c, p: d.select_entropy(-c.log(), torch.arange(len(c)), threshold=p, slope=0.02),
        [0.0, 0.4, 2.0],
    ),
    "klass": (
        lambda c, p: d.select_klass(c, torch.full((len(c),), 2), threshold=p),
        [0.99, 0.7, 0.3],
    ),
    "prefix": (d.select_prefix, [0.99, 0.7, 0.3]),
}


def test_every_rule_has_a_case():
    assert CASES.keys() == d.SELECTORS.keys() - {*AR_RULES}  # which have one position each


confidences = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12).map(torch.tensor)


@pytest.mark.parametrize("name", CASES)
@given(confidence=confidences)
def test_every_rule_commits_something_and_more_when_it_is_generous(name, confidence):
    select, parameters = CASES[name]
    before = torch.zeros(len(confidence), dtype=torch.bool)
    for parameter in parameters:
        chosen = select(confidence, parameter)
        assert chosen.dtype == torch.bool and chosen.any()
        is_fallback = int(before.sum()) == 1  # the single best may give way to what qualifies
        assert is_fallback or bool(chosen[before].all())
        before = chosen


@pytest.mark.parametrize("name", CASES)
@given(value=st.floats(0.01, 1), num=st.integers(1, 9))
def test_ties_go_to_the_lowest_position(name, value, num):
    select, parameters = CASES[name]
    for parameter in parameters:
        chosen = picked(select(torch.full((num,), value), parameter))
        if name == "klass" and len(chosen) > 1:
            continue  # there the steps of stability differ
        assert chosen == list(range(len(chosen)))


@given(
    num_masks=st.integers(1, 40),
    num_steps=st.integers(1, 60),
    schedule=st.sampled_from(["linear", "cosine"]),
    seed=st.none() | st.integers(0, 99),
)
def test_counts_add_up(num_masks, num_steps, schedule, seed):
    u_SN = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        u_SN = torch.rand(num_steps, num_masks, generator=generator, dtype=torch.float64)
    counts = d.commit_counts(num_masks, num_steps, schedule, u_SN)
    assert sum(counts) == num_masks and min(counts) > 0 and len(counts) <= num_steps


def test_stochastic_counts_are_binomial():
    """The first of 4 linear steps commits Binomial(8, 1/4): mean 2, variance 1.5."""
    position, firsts = torch.arange(8), []
    for seed in range(400):
        u = [d.position_uniform(position, seed=seed, step=s, kind=d.COUNT) for s in range(4)]
        counts = d.commit_counts(8, 4, u_SN=torch.stack(u))
        firsts.append(float((torch.stack(u)[0] < 0.25).sum()))
        assert firsts[-1] in (0, counts[0])
    found = torch.tensor(firsts)
    assert abs(float(found.mean()) - 2) < 0.25 and abs(float(found.var()) - 1.5) < 0.4


def test_steps_per_block_rounds_up():
    assert d.steps_per_block(10, 4, 32) == 3
    assert d.steps_per_block(None, 4, 32) == 32


def test_confidence_and_entropy_are_those_of_the_softmax():
    logits = torch.tensor([[2.0, 1.0, -torch.inf, 0.5], [0.0, 0.0, -torch.inf, 0.0]])
    p = torch.softmax(logits, -1)
    logprob = d.token_logprobs(logits, torch.tensor([1, 3]))
    assert_close(logprob.exp(), p[[0, 1], [1, 3]])
    expected = -(p * p.clamp(min=1e-30).log()).sum(-1)
    assert_close(d.entropy(logits), expected)
    assert_close(d.entropy(logits)[1], math.log(3))
    assert float(d.entropy(torch.tensor([[0.0, -torch.inf]]))[0]) == 0


def test_divergence():
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert_close(d.divergence(p.log(), q.log())[0], expected)
    assert float(d.divergence(p.log(), p.log())[0]) == 0


def test_guidance():
    assert d.guide(torch.tensor([3.0]), torch.tensor([1.0]), 0.5).tolist() == [4.0]
    assert d.guide(torch.tensor([3.0]), torch.tensor([1.0]), 0.0).tolist() == [3.0]


def test_only_likely_tokens_stay():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()

    def stay(**options):
        return picked((d.keep_likely(logits, **options) > -torch.inf)[0])

    assert stay() == stay(top_k=9) == [0, 1, 2, 3]
    assert stay(top_k=2) == [0, 2]
    assert stay(top_p=0.39) == [0] and stay(top_p=0.41) == [0, 2] and stay(top_p=0.71) == [0, 2, 3]
    assert stay(min_p=0.6) == [0, 2]
    assert stay(top_k=3, min_p=0.6) == [0, 2]


@given(seed=st.integers(0, 99), top_p=st.floats(0.01, 0.99), scale=st.floats(0.1, 5))
def test_a_nucleus_is_the_least_set_that_reaches_its_mass(seed, top_p, scale):
    """Small nuclei, and ones beyond the tokens that are looked at first."""
    logits = scale * torch.randn(3, 700, generator=torch.Generator().manual_seed(seed))
    p, is_kept = torch.softmax(logits, -1), d.keep_likely(logits, top_p=top_p) > -torch.inf
    for row, kept in zip(p, is_kept, strict=True):
        mass, least = float(row[kept].sum()), float(row[kept].min())
        assert mass > top_p - 1e-5 and mass - least < top_p + 1e-5
        assert kept.all() or float(row[~kept].max()) <= least


def test_draws_follow_the_distribution_and_nothing_else():
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    u = d.position_uniform(torch.arange(20_000), seed=3, step=0)
    drawn = d.draw(p.log().expand(len(u), -1), u)
    shares = drawn.bincount(minlength=4) / len(u)
    assert shares[1] == 0 and torch.allclose(shares, p, atol=0.012)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert d.draw(torch.tensor([[-torch.inf, 1.0, -torch.inf]] * 2), edges).tolist() == [1, 1]


@given(st.lists(st.floats(width=32), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_a_token_whatever_the_logits(logits, u):
    """Infinite logits and NaN make the probabilities NaN."""
    (drawn,) = d.draw(torch.tensor([logits]), torch.tensor([u], dtype=torch.float64)).tolist()
    assert 0 <= drawn < len(logits)
    if max(logits) > -math.inf and not any(map(math.isnan, logits)):
        assert logits[drawn] > -math.inf


def test_random_numbers_depend_on_everything_that_names_them():
    position = torch.arange(6)
    first = d.position_uniform(position, seed=1, step=2, choice=0)
    assert torch.equal(first, d.position_uniform(position, seed=1, step=2, choice=0))
    assert torch.equal(first[3:], d.position_uniform(position[3:], seed=1, step=2))
    for other in (
        {"seed": 2, "step": 2},
        {"seed": 1, "step": 3},
        {"seed": 1, "step": 2, "choice": 1},
        {"seed": 1, "step": 2, "kind": d.ORDER},
    ):
        assert not torch.equal(first, d.position_uniform(position, **other))


@pytest.mark.parametrize("vocab", [64, 320, 321])
def test_most_likely_is_the_lowest_of_the_best(vocab):
    logits = torch.randint(0, 9, (50, vocab), generator=torch.Generator().manual_seed(0)).float()
    logits[:, 3] = -torch.inf
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert d.most_likely(logits).tolist() == expected
