"""Decoding rules: hand-computed selections, and the laws that all of them obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.config import AR_RULES
from a2d_ray.diffusion import decoding as d
from a2d_ray.diffusion import rules as r
from tests.closeness import assert_close


def row(*values):
    """One request's values, one column more than it has places."""
    return torch.tensor([[*values, -torch.inf]])


def bound(value):
    return torch.tensor([[value]])


CONFIDENCE = row(0.5, 0.95, 0.9, 0.99, 0.2)
# Entropies as (p, 1 - p) of a coin would not be round; these are chosen.
ENTROPY = torch.tensor([[0.3, 0.02, 0.05, 0.0, 1.5, torch.inf]])


def picked(is_selected):
    return is_selected.flatten().nonzero()[:, 0].tolist()


def test_steps_takes_the_most_confident():
    assert picked(r.select_top(CONFIDENCE, bound(2))) == [1, 3]


def test_threshold_takes_what_exceeds_it_else_the_best():
    assert picked(r.select_threshold(CONFIDENCE, bound(0.9))) == [1, 3]  # 0.9 does not exceed 0.9
    assert picked(r.select_threshold(CONFIDENCE, bound(0.995))) == [3]


@pytest.mark.parametrize(
    ("factor", "expected"),
    # (n + 1)(1 - conf_n) over 0.99, 0.95, 0.9, 0.5, 0.2: 0.02, 0.15, 0.4, 2.5, 4.8
    [(0.01, [3]), (0.1, [3]), (0.2, [1, 3]), (1.0, [1, 2, 3]), (2.6, [0, 1, 2, 3])],
)
def test_factor(factor, expected):
    assert picked(r.select_factor(CONFIDENCE, bound(factor))) == expected


@pytest.mark.parametrize(
    ("delta", "expected"),
    # sum - (n - 1) - (1 - conf_n): 0.98, 0.89, 0.74, -0.16, ...
    [(0.99, [3]), (0.9, [3]), (0.8, [1, 3]), (0.25, [1, 2, 3]), (-0.2, [0, 1, 2, 3])],
)
def test_frechet(delta, expected):
    assert picked(r.select_frechet(CONFIDENCE, bound(delta))) == expected


@pytest.mark.parametrize(
    ("gamma", "expected"),
    # Sums of the entropies before the n-th: 0, 0, 0.02, 0.07, 0.37
    [(0.0, [1, 3]), (0.02, [1, 2, 3]), (0.1, [0, 1, 2, 3]), (0.4, [0, 1, 2, 3, 4])],
)
def test_entropy_bound(gamma, expected):
    assert picked(r.select_entropy_bound(ENTROPY, bound(gamma))) == expected


def test_entropy_asks_more_of_what_is_far_away():
    position = torch.tensor([[10, 11, 12, 20, 21, 0]])

    def chosen(threshold, slope):
        bounds = {"threshold_R1": bound(threshold), "slope_R1": bound(slope)}
        return picked(r.select_entropy(ENTROPY, position, **bounds))

    assert chosen(0.4, 0.0) == [0, 1, 2, 3]
    assert chosen(0.4, 0.05) == [0, 1, 2]  # position 20: 0 + 10 x 0.05
    assert chosen(0.0, 0.05) == [1]  # the lowest cost, 0.02 + 0.05


def test_klass_waits_until_a_distribution_has_settled():
    stable = torch.tensor([[5, 1, 2, 0, 9, 9]])
    assert picked(r.select_klass(CONFIDENCE, stable, threshold_R1=bound(0.4))) == [0, 2]
    assert picked(r.select_klass(CONFIDENCE, stable, threshold_R1=bound(0.9))) == [3]


def prefix(confidence, threshold):
    return r.select_prefix(confidence, confidence > -torch.inf, threshold) & (confidence > 0)


def test_prefix_is_a_run_from_the_left():
    confidence = row(0.95, 0.9, 0.5, 0.99)
    assert picked(prefix(confidence, bound(0.9))) == [0, 1]  # 0.9 is enough
    assert picked(prefix(confidence, bound(0.97))) == [0]


def test_kept_drafts_and_one_token_more():
    is_kept = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4])
    assert r.select_kept(is_kept).sum(1).tolist() == [3, 1, 4]


def test_remask_takes_what_fell_and_may_still_come_back():
    confidence, may_fall = torch.tensor([0.1, 0.1, 0.6]), torch.tensor([True, False, True])
    assert picked(r.select_remask(confidence, may_fall, threshold_N=torch.tensor(0.3))) == [0]


def entropies(confidence):
    return torch.where(confidence > 0, -confidence.clamp(min=1e-9).log(), torch.inf)


def columns(confidence):
    return torch.arange(confidence.shape[1]).expand_as(confidence)


CASES = {  # name: (function of confidence and bounds, parameters from strict to generous)
    "steps": (r.select_top, [1, 2, 4]),
    "threshold": (r.select_threshold, [0.99, 0.7, 0.3]),
    "factor": (r.select_factor, [0.1, 1.0, 3.0]),
    "frechet": (r.select_frechet, [0.9, 0.25, 0.0]),
    "entropy_bound": (lambda c, p: r.select_entropy_bound(entropies(c), p), [0.0, 0.1, 1.0]),
    "entropy": (
        lambda c, p: r.select_entropy(
            entropies(c), columns(c), threshold_R1=p, slope_R1=torch.full_like(p, 0.02)
        ),
        [0.0, 0.4, 2.0],
    ),
    "klass": (
        lambda c, p: r.select_klass(c, torch.full(c.shape, 2), threshold_R1=p),
        [0.99, 0.7, 0.3],
    ),
    "prefix": (prefix, [0.99, 0.7, 0.3]),
}


def test_every_rule_has_a_case():
    assert CASES.keys() == r.SELECTORS.keys() - {*AR_RULES}  # which have `select_kept`


confidences = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12).map(lambda c: row(*c))


@pytest.mark.parametrize("name", CASES)
@given(confidence=confidences)
def test_every_rule_commits_something_and_more_when_it_is_generous(name, confidence):
    select, parameters = CASES[name]
    before = torch.zeros(confidence.shape, dtype=torch.bool)
    for parameter in parameters:
        chosen = select(confidence, bound(parameter)) & (confidence > -torch.inf)
        assert chosen.dtype == torch.bool and chosen.any()
        is_fallback = int(before.sum()) == 1  # the single best may give way to what qualifies
        assert is_fallback or bool(chosen[before].all())
        before = chosen


@pytest.mark.parametrize("name", CASES)
@given(value=st.floats(0.01, 1), num=st.integers(1, 9))
def test_ties_go_to_the_lowest_position(name, value, num):
    select, parameters = CASES[name]
    for parameter in parameters:
        chosen = picked(select(row(*[value] * num), bound(parameter))[:, :num])
        if name == "klass" and len(chosen) > 1:
            continue  # there the steps of stability differ
        assert chosen == list(range(len(chosen)))


@pytest.mark.parametrize("name", CASES)
@given(several=st.lists(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=9), max_size=6))
def test_a_rule_selects_for_each_request_by_itself(name, several):
    """Together, on a grid as wide as the widest needs, each with a bound of its own."""
    select, parameters = CASES[name]
    width = max(map(len, several), default=0)
    bounds = [parameters[i % 3] for i in range(len(several))]
    together = torch.full((len(several), width), -torch.inf)
    for index, confidence in enumerate(several):
        together[index, : len(confidence)] = torch.tensor(confidence)
    if not several:
        return
    chosen = select(together, torch.tensor(bounds)[:, None])
    for index, confidence in enumerate(several):
        alone = select(torch.tensor([confidence]), bound(bounds[index]))
        assert torch.equal(chosen[index, : len(confidence)], alone[0])


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
    cond, un, factor = torch.full((2, 1), 3.0), torch.full((2, 1), 1.0), torch.tensor([[1.5], [1]])
    assert d.guide(cond, un, factor).tolist() == [[4.0], [3.0]]


def test_only_likely_tokens_stay():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()

    def stay(*, top_k=0, top_p=1.0, min_p=0.0):
        kept = d.keep_top_k(logits, torch.tensor([top_k]).clamp(max=4), max(min(top_k, 4), 1))
        kept, _ = d.keep_top_p(kept, torch.tensor([top_p]))
        return picked(d.keep_min_p(kept, torch.tensor([min_p]).log()) > -torch.inf)

    assert stay() == stay(top_k=9) == [0, 1, 2, 3]
    assert stay(top_k=2) == [0, 2]
    assert stay(top_p=0.39) == [0] and stay(top_p=0.41) == [0, 2] and stay(top_p=0.71) == [0, 2, 3]
    assert stay(min_p=0.6) == [0, 2]
    assert stay(top_k=3, min_p=0.6) == [0, 2]


@given(seed=st.integers(0, 99), top_p=st.floats(0.01, 0.99), scale=st.floats(0.1, 5))
def test_a_nucleus_is_the_least_set_that_reaches_its_mass(seed, top_p, scale):
    """Small nuclei, and ones beyond the tokens that are looked at first."""
    logits = scale * torch.randn(3, 700, generator=torch.Generator().manual_seed(seed))
    p, is_kept = torch.softmax(logits, -1), d.keep_top_p(logits, torch.full((3,), top_p))[0]
    is_kept = is_kept > -torch.inf
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
def test_a_draw_is_a_token_or_none(logits, u):
    """Infinite logits and NaN make the probabilities NaN, and no token is drawn."""
    (drawn,) = d.draw(torch.tensor([logits]), torch.tensor([u], dtype=torch.float64)).tolist()
    assert 0 <= drawn <= len(logits)
    is_sound = -math.inf < max(logits) < math.inf and not any(map(math.isnan, logits))
    assert (drawn < len(logits)) == is_sound
    if is_sound:
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
