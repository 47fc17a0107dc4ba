"""Noise: counter-based, exact counts, complementary views, right expectations."""

import itertools
import math
from typing import get_args

import pytest
import torch
from torch.nn.functional import cross_entropy

from a2d_ray.config import NoiseSchedule
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise, eos_tail_lengths
from a2d_ray.diffusion.randomness import philox, uniform
from a2d_ray.diffusion.schedules import SCHEDULES
from tests.closeness import assert_close
from tests.rows import MIXED, packed_row, split_documents

BD3LM = LayoutSpec(objective="bd3lm", block_size=4, views=2)


def draw(layout, spec=None, epoch=0, **options):
    epoch_R = torch.full((layout.ids_RT.shape[0],), epoch)
    return draw_noise(
        layout, spec or NoiseSpec(), seed=options.pop("seed", 1), epoch_R=epoch_R, **options
    )


def test_philox_known_answers():
    def words(*values):
        return tuple(torch.tensor([v]) for v in values)

    # Random123's kat_vectors for philox4x32-10.
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(int(w) for w in philox(words(*counter), key)) == expected


def test_uniform_is_uniform_and_kinds_are_independent():
    n = torch.arange(20_000)
    zero = torch.zeros_like(n)
    a, b = (uniform(kind, 1, 0, zero, zero, n) for kind in (0, 1))
    for u in (a, b):
        assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.003
        assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03


@pytest.mark.parametrize("kind", ["exact", "bernoulli"])
def test_noise_of_a_document_does_not_depend_on_its_packing(kind):
    row = packed_row(MIXED)
    packed = build_layout([row], BD3LM)
    noise = draw(packed, NoiseSpec(kind=kind))
    for index, alone in enumerate(split_documents(row)):
        layout = build_layout([alone], BD3LM)
        expected = draw(layout, NoiseSpec(kind=kind))
        mine = packed.doc_RT[0] == index
        assert torch.equal(noise.is_masked_RT[0][mine], expected.is_masked_RT[0])
        assert torch.equal(noise.weight_RT[0][mine], expected.weight_RT[0])


def test_noise_changes_with_seed_and_epoch_only():
    layout = build_layout([packed_row(MIXED)], BD3LM)
    before = torch.random.get_rng_state()
    first = draw(layout).is_masked_RT
    assert torch.equal(first, draw(layout).is_masked_RT)
    assert not torch.equal(first, draw(layout, epoch=1).is_masked_RT)
    assert not torch.equal(first, draw(layout, seed=2).is_masked_RT)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["exact", "bernoulli"])
def test_views_are_complementary(kind):
    layout = build_layout([packed_row(MIXED)], BD3LM)
    for epoch in range(20):
        noise = draw(layout, NoiseSpec(kind=kind), epoch)
        first, second = (
            noise.is_masked_RT[(layout.stream_RT == view) & layout.is_target_RT] for view in (1, 2)
        )
        assert torch.equal(first, ~second)


def test_exact_counts_and_weights():
    layout = build_layout([packed_row(MIXED)], BD3LM)
    seen = set()
    for epoch in range(40):
        noise = draw(layout, epoch=epoch)
        groups = zip(
            *(x[0].tolist() for x in (layout.doc_RT, layout.stream_RT, layout.block_RT)),
            strict=True,
        )
        by_block: dict = {}
        for key, target, masked, weight in zip(
            groups, layout.is_target_RT[0], noise.is_masked_RT[0], noise.weight_RT[0], strict=True
        ):
            if target:
                by_block.setdefault(key, []).append((bool(masked), float(weight)))
        for (_, stream, _), tokens in by_block.items():
            m, k = len(tokens), sum(masked for masked, _ in tokens)
            if stream == 1:
                seen.add((m, k))
            assert (k >= 1) or stream == 2
            doubled = 2 if k == m and stream == 1 else 1
            assert all(w == pytest.approx(doubled * m / k) for masked, w in tokens if masked)
            assert all(w == 0 for masked, w in tokens if not masked)
    assert {(4, k) for k in (1, 2, 3, 4)} <= seen


def exact_expectation(losses):
    """E over k ~ U{1..m} and subsets of size k of m/k x the sum of their losses, by enumeration."""
    m = len(losses)
    total = 0.0
    for k in range(1, m + 1):
        subsets = list(itertools.combinations(range(m), k))
        total += sum(m / k * sum(losses(s)[i] for i in s) for s in subsets) / len(subsets) / m
    return total


class ContextLosses:
    """Losses that depend on which tokens are masked, as a model's do."""

    def __init__(self, m):
        self.m = m

    def __len__(self):
        return self.m

    def __call__(self, masked):
        return {i: 1.0 + 0.3 * i + 0.2 * len(masked) + 0.05 * sum(masked) for i in masked}


@pytest.mark.parametrize("m", [1, 3, 5, 6])
@pytest.mark.parametrize("views", [1, 2])
def test_exact_noise_estimates_the_enumerated_nelbo(m, views):
    losses = ContextLosses(m)
    docs = [(i, [(2, False), (m, True)], False) for i in range(400)]
    layout = build_layout(
        [packed_row(docs)], LayoutSpec(objective="bd3lm", block_size=m, views=views)
    )
    estimates = []
    for epoch in range(10):
        noise = draw(layout, epoch=epoch)
        total = 0.0
        for doc, view in itertools.product(range(400), range(1, views + 1)):
            mine = (layout.doc_RT[0] == doc) & (layout.stream_RT[0] == view) if doc < 40 else None
            if mine is None:
                break
            masked = noise.is_masked_RT[0][mine].nonzero()[:, 0].tolist()
            weight = noise.weight_RT[0][mine]
            values = losses(masked)
            total += sum(float(weight[i]) * values[i] for i in masked)
        estimates.append(total / 40 / views)
    expected = exact_expectation(losses)
    spread = torch.tensor(estimates).std().item() / math.sqrt(len(estimates))
    assert abs(sum(estimates) / len(estimates) - expected) < max(5 * spread, 1e-6)


def test_schedules_are_named_once_and_others_raise():
    assert set(SCHEDULES) == set(get_args(NoiseSchedule))
    layout = build_layout([packed_row(MIXED)], BD3LM)
    with pytest.raises(ValueError, match="no noise schedule 'sine': choose from"):
        draw(layout, NoiseSpec(kind="bernoulli", schedule="sine"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("per", ["sequence", "block"])
def test_bernoulli_scores_a_uniform_model_with_log_v(schedule, per):
    vocab, docs = 50, [(i, [(1, False), (16, True)], False) for i in range(3000)]
    layout = build_layout([packed_row(docs)], BD3LM)
    noise = draw(layout, NoiseSpec(kind="bernoulli", schedule=schedule, per=per))
    loss = cross_entropy(torch.zeros(1, vocab), torch.tensor([1]))
    estimate = float(noise.weight_RT.sum() * loss / layout.num_targets)
    assert estimate == pytest.approx(math.log(vocab), rel=0.05)


def test_exact_scores_a_uniform_model_with_log_v_in_every_draw():
    layout = build_layout([packed_row(MIXED)], BD3LM)
    for epoch in range(5):
        noise = draw(layout, epoch=epoch)
        assert_close(noise.weight_RT.sum(), layout.num_targets)


@pytest.mark.parametrize("kind", ["exact", "bernoulli"])
def test_warm_up_caps_the_corrupted_share_and_weighs_one(kind):
    docs = [(i, [(2, False), (40, True)], False) for i in range(200)]
    layout = build_layout([packed_row(docs)], LayoutSpec(objective="bd3lm", block_size=40, views=2))
    noise = draw(layout, NoiseSpec(kind=kind), max_fraction=0.2)
    masked, weight = noise.is_masked_RT, noise.weight_RT
    for view in (1, 2):
        share = masked[layout.stream_RT == view].float().mean() / (40 / 40)
        assert 0.05 < float(share) < 0.16  # half of the cap on average
    assert set(weight[masked].tolist()) == {1.0}


def test_eos_tails_are_uniform():
    docs = torch.arange(30_000)
    tails = eos_tail_lengths(docs, seed=3, epoch_D=torch.zeros_like(docs), longest=6)
    assert torch.bincount(tails, minlength=7).tolist()[0] == 0
    assert (torch.bincount(tails)[1:] / 30_000 - 1 / 6).abs().max() < 0.01
