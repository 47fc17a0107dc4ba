"""A padded round is the round: for layers, for decisions, in few shapes."""

import random
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from a2d_ray.generation.engine.cache import split_runs
from a2d_ray.generation.engine.padding import (
    ASKED_ROWS,
    PARTS,
    SEGMENTS,
    SPANS,
    Buckets,
    next_step,
    pad_tokens,
    token_shape,
    usual_asked_rows,
    usual_tokens,
)
from a2d_ray.generation.engine.plan import RoundTokens
from a2d_ray.generation.engine.spans import attend, plan_spans
from a2d_ray.generation.engine.transfer import signature
from a2d_ray.generation.engine.work import Sight, Work
from tests.closeness import assert_close
from tests.generation.test_attention import hidden_masks

SLOTS, H, K, D, B = 4_000, 4, 2, 8, 8
BUCKETS = Buckets(units=(1, B, 32), scratch=SLOTS, num_requests=9, is_flash=False)


def work_of(visible, before, cuts, groups, seed, first_slot):
    """New tokens that see so many keys, and groups of masks that see part of each other."""
    num_visible = [max(before + i, 1) for i in accumulate(visible)]
    num_masks = sum(groups)
    hidden = hidden_masks(groups, seed)
    num_rows = len(visible) + num_masks
    num_keys = max(num_visible[-1] + num_masks, num_rows)
    edges = [0, *sorted(cut for cut in cuts if cut < num_keys), num_keys]
    runs = [(first_slot + 200 * i + a, first_slot + 200 * i + b) for i, (a, b) in
            enumerate(pairwise(edges))]  # fmt: skip
    new_runs = split_runs(runs, num_keys - num_rows)[1] if num_keys > num_rows else runs
    return Work(
        sequence=None, storage=None, chunk=None, ids=[0] * num_rows, positions=range(num_rows),
        num_noised=0, new_runs=new_runs, all_runs=runs, num_visible=num_visible,
        sight=Sight(num_common=num_visible[-1], hidden_mS=torch.tensor(hidden)) if groups else None,
    )  # fmt: skip


drawn_works = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 0, 0, 1, 1, 7]), min_size=1, max_size=12),
        st.integers(0, 9),
        st.sets(st.integers(1, 30), max_size=2),
        st.lists(st.integers(1, 3), max_size=2),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=4,
)


def works_of(drawn):
    return [work_of(*one, first_slot=800 * index) for index, one in enumerate(drawn)]


def tokens_of(works):
    num_tokens = sum(work.num_tokens for work in works)
    return RoundTokens(
        id_N=torch.arange(num_tokens), position_N=torch.arange(num_tokens), is_noised_N=None,
        noised_row_M=None, slices=(), spans=plan_spans(works),
    )  # fmt: skip


def tensors(num_rows):
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_rows, H, D), (SLOTS + 1, K, D), (SLOTS + 1, K, D))
    return [torch.randn(shape, generator=generator) for shape in shapes]


BESIDE_A_PROMPT = [([4, 0, 0, 0], 0, set(), [], 0), ([1, 1, 1], 0, set(), [], 0)]


@example(drawn=BESIDE_A_PROMPT)  # a block, and a prompt that is read causally from its start
@given(drawn=drawn_works)
def test_attention_of_a_padded_round_is_that_of_the_round(drawn):
    """And that of each request alone."""
    works = works_of(drawn)
    tokens = tokens_of(works)
    num_tokens = len(tokens.id_N)
    query, key, value = tensors(num_tokens)
    together = attend(tokens.spans, query, key, value, 0.3)
    parts = query.split([work.num_tokens for work in works])
    alone = [
        attend(plan_spans([work]), part, key, value, 0.3)
        for work, part in zip(works, parts, strict=True)
    ]
    assert_close(together, torch.cat(alone))
    shape = token_shape(tokens, BUCKETS)
    if isinstance(shape, str):
        assert shape == "only prompts, read causally"
        return
    padded = pad_tokens(tokens, shape, BUCKETS)
    assert len(padded.id_N) == shape.num_rows in {unit * s for unit in (1, B, 32) for s in SEGMENTS}
    assert all(num_spans in SPANS for _, num_spans in shape.calls)
    assert all(
        num_rows in {shape.num_rows * parts for parts in (1, *PARTS)} for num_rows, _ in shape.calls
    )
    more = torch.randn(shape.num_rows - num_tokens, H, D)
    got = attend(padded.spans, torch.cat([query, more]), key, value, 0.3)
    assert_close(got[:num_tokens], together)
    assert got.isfinite().all()


@given(drawn=drawn_works)
def test_padding_writes_to_the_scratch_slot_and_reads_one_key(drawn):
    tokens = tokens_of(works_of(drawn))
    shape = token_shape(tokens, BUCKETS)
    if isinstance(shape, str):
        return
    padded = pad_tokens(tokens, shape, BUCKETS)
    num_tokens = len(tokens.id_N)
    assert torch.equal(padded.spans.slot_N[:num_tokens], tokens.spans.slot_N)
    assert padded.spans.slot_N[num_tokens:].eq(SLOTS).all()
    for call, own in zip(padded.spans.calls, tokens.spans.calls, strict=True):
        num_spans = len(own.num_keys_P)
        assert torch.equal(call.num_keys_P[:num_spans], own.num_keys_P)
        assert call.num_keys_P[num_spans:].eq(1).all()
        assert call.first_slot_P[num_spans:].eq(SLOTS).all()
        num_rows = call.first_row_P.diff()
        assert num_rows.ge(0).all() and num_rows.le(shape.unit).all()
        assert int(call.first_row_P[-1]) == (
            shape.num_rows if call.row_T is None else len(call.row_T)
        )


def test_a_soak_of_random_rounds_has_few_shapes():
    """Up to 64 requests in blocks of 8, some of which commit one, some with a shared prefix."""
    rng = random.Random(0)
    shapes = set()
    for _ in range(400):
        works = []
        for index in range(rng.randint(1, 64)):
            num_blocks = 1 + (rng.random() < 0.2)
            cuts = {3} if rng.random() < 0.1 else set()
            visible = [B if i % B == 0 else 0 for i in range(num_blocks * B)]
            works.append(work_of(visible, 0, cuts, [], 0, first_slot=40 * index))
        shapes.add(signature(pad(tokens_of(works))))
    usual = {signature(tokens) for tokens in usual_tokens(BUCKETS, 64, B, is_gated=False)}
    assert len(usual) == 2 * len(SEGMENTS)
    assert len(shapes) > 10 and shapes <= usual


def pad(tokens):
    shape = token_shape(tokens, BUCKETS)
    assert not isinstance(shape, str), shape
    return pad_tokens(tokens, shape, BUCKETS)


@pytest.mark.parametrize(
    ("visible", "reason"),
    [
        ([40] * 40, "a segment is longer than a block"),
        ([40 + i // 32 * 32 for i in range(32 * 129)], "more tokens than the largest bucket"),
        (list(range(1, 33)), "only prompts, read causally"),
    ],
)
def test_what_is_in_no_bucket_is_told_by_name(visible, reason):
    work = Work(
        sequence=None, storage=None, chunk=None, ids=[0] * len(visible),
        positions=range(len(visible)), num_noised=0, new_runs=[(0, len(visible))],
        all_runs=[(0, max(visible))], num_visible=visible,
    )  # fmt: skip
    assert token_shape(tokens_of([work]), BUCKETS) == reason


def test_widths_of_keys_double_where_they_cost():
    found = {BUCKETS.most_keys(number) for number in range(1, SLOTS)}
    assert found == {256, 512, 1024, 2048, SLOTS + 1}
    flash = Buckets(units=(1,), scratch=SLOTS, num_requests=2, is_flash=True)
    assert {flash.most_keys(number) for number in (1, 300, SLOTS)} == {SLOTS + 1}


def test_rows_of_decisions_come_in_steps():
    assert usual_asked_rows(8 * 32) == [320, 256, 192, 128, 64]
    assert {next_step(number) for number in range(1, 129)} == {ASKED_ROWS, 2 * ASKED_ROWS}
