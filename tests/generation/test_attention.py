"""Attention, on CPUs and elsewhere, equals plain softmax over what each token sees."""

import random
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.generation.engine.attention import Round, Slice, _attend_slice, make_tiles
from a2d_ray.generation.engine.cache import KVStore
from a2d_ray.generation.engine.plan import MERGED_ROWS, tiles_of
from a2d_ray.generation.engine.spans import attend, plan_spans
from a2d_ray.generation.engine.transfer import send
from a2d_ray.generation.engine.work import Sight, Work
from tests.closeness import assert_close
from tests.devices import CPU_AND_GPU

N, S, H, K, D = 200, 260, 6, 2, 8  # more rows than a tile


def tensors(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, H, D), (K, S, D), (K, S, D))
    return [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]


VISIBLE = [60 + (i // 4 + 1) * 4 for i in range(N)]


def plain(query, key, value):
    seen = torch.arange(S)[None] < torch.tensor(VISIBLE)[:, None]
    key, value = (x.repeat_interleave(H // K, dim=0) for x in (key, value))
    scores = torch.einsum("nhd,hsd->hns", query, key) * 0.3
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hns,hsd->nhd", weights, value)


def test_slices_equal_plain_attention():
    tiles = make_tiles(VISIBLE)
    assert len(tiles) > 1 and tiles[0].num_keys < S
    assert_close(_attend_slice(*tensors(), tiles, 0.3), plain(*tensors()))


def seen_by(calls, num_rows):
    """(row, slot) of every key that a row sees, by the spans of all calls."""
    seen = []
    for call in calls:
        rows = range(num_rows) if call.row_T is None else call.row_T.tolist()
        bounds = zip(call.first_row_P[:-1].tolist(), call.first_row_P[1:].tolist(), strict=True)
        slots = call.first_slot_P.tolist()
        for (first, stop), slot, length in zip(
            bounds, slots, call.num_keys_P.tolist(), strict=False
        ):
            for index in range(first, stop):
                num_seen = length - (stop - 1 - index) * call.is_causal
                seen += [(rows[index], slot + i) for i in range(num_seen)]
    return seen


def seen_in(tiles, slots):
    """(row, slot) of every key that a row sees, by tiles."""
    seen = []
    for tile in tiles:
        for index, row in enumerate(range(*tile.rows)):
            hidden = [] if tile.hidden_RS is None else tile.hidden_RS[index].tolist()
            keys = zip(slots[tile.num_common : tile.num_keys], hidden, strict=True)
            kept = slots[: tile.num_common] + [slot for slot, is_hidden in keys if not is_hidden]
            seen += [(row, slot) for slot in kept]
    return seen


steps = st.sampled_from([0, 0, 0, 1, 1, 1, 2, 7])


def hidden_masks(groups, seed):
    """Which masks a mask does not see, at random; it sees itself."""
    rng = random.Random(seed)
    num_masks = sum(groups)
    hidden = [[rng.random() < 0.4 for _ in range(num_masks)] for _ in range(num_masks)]
    for index, row in enumerate(hidden):
        row[index] = False
    return hidden


@given(
    visible=st.lists(steps, min_size=1, max_size=2 * MERGED_ROWS),
    before=st.integers(0, 9),
    cuts=st.sets(st.integers(1, 60), max_size=4),
    groups=st.lists(st.integers(1, 3), max_size=3),
    seed=st.integers(0, 99),
)
def test_spans_and_tiles_are_what_each_row_sees_once(visible, before, cuts, groups, seed):
    """Whatever the runs of slots are; with masks that see part of the others, too."""
    num_visible = [max(before + i, 1) for i in accumulate(visible)]
    num_masks = sum(groups)
    hidden = hidden_masks(groups, seed)
    num_keys = num_visible[-1] + num_masks
    edges = [0, *sorted(cut for cut in cuts if cut < num_keys), num_keys]
    runs = [(1_000 * i + a, 1_000 * i + b) for i, (a, b) in enumerate(pairwise(edges))]
    slots = [slot for a, b in runs for slot in range(a, b)]
    num_rows = len(visible) + num_masks
    work = Work(
        sequence=None, storage=None, chunk=None, ids=[0] * num_rows, positions=range(num_rows),
        num_noised=0, new_runs=None, all_runs=runs, num_visible=num_visible,
        sight=Sight(num_common=num_visible[-1], hidden_mS=torch.tensor(hidden)) if groups else None,
    )  # fmt: skip
    wanted = [(row, slots[i]) for row, n in enumerate(num_visible) for i in range(n)]
    for index, row in enumerate(hidden):
        own = zip(slots[num_visible[-1] :], row, strict=True)
        seen = slots[: num_visible[-1]] + [slot for slot, is_hidden in own if not is_hidden]
        wanted += [(len(visible) + index, slot) for slot in seen]
    found = plan_spans([work])
    assert sorted(seen_by(found.calls, num_rows)) == sorted(wanted)
    assert sorted(seen_in(tiles_of(work), slots)) == sorted(wanted)


def spans_of(runs):
    work = Work(
        sequence=None, storage=None, chunk=None, ids=[0] * N, positions=range(N), num_noised=0,
        new_runs=None, all_runs=runs, num_visible=VISIBLE,
    )  # fmt: skip
    return plan_spans([work])


@pytest.mark.parametrize("runs", [[(0, S)], [(300, 400), (20, 180)], [(10, 11), (500, 759)]])
def test_spans_equal_plain_attention(runs):
    """Also where keys lie in several runs."""
    query, key, value = tensors()
    keys, values = torch.full((2, 800, K, D), torch.nan)
    slots = [slot for start, stop in runs for slot in range(start, stop)]
    keys[slots], values[slots] = key.transpose(0, 1), value.transpose(0, 1)
    assert_close(attend(spans_of(runs), query, keys, values, 0.3), plain(query, key, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runs", [[(0, S)], [(300, 400), (20, 180)]])
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_spans_equal_plain_attention_in_every_precision(device, dtype, runs):
    """On a GPU bfloat16 is FlashAttention with spans that overlap and go back."""
    device = torch.device(device)
    query, key, value = tensors(device, dtype)
    keys, values = torch.zeros(2, 800, K, D, device=device, dtype=dtype)
    slots = [slot for start, stop in runs for slot in range(start, stop)]
    keys[slots], values[slots] = key.transpose(0, 1), value.transpose(0, 1)
    got = attend(send(spans_of(runs), device), query, keys, values, 0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert_close(got.cpu().float(), plain(*tensors()), rounding=tolerance)


@pytest.mark.parametrize("runs", [[(0, S)], [(300, 400), (20, 180)], [(10, 11), (500, 759)]])
def test_keys_and_values_are_read_as_they_were_written(runs):
    query, key, value = tensors()
    store = KVStore(800)
    store.write(0, runs, key, value)
    store.write(1, runs, key[:1], value[:, :, :3])  # a layer of other widths
    got = store.read(0, runs)
    assert store.read(1, runs)[1].shape == (K, S, 3)
    assert torch.equal(got[0], key) and torch.equal(got[1], value)
    part = Slice(num_tokens=N, new_runs=[], all_runs=runs, tiles=make_tiles(VISIBLE))
    round_ = Round(slices=[part], store=store)
    output = round_.attend(query, key[:, :N].transpose(0, 1), value[:, :N].transpose(0, 1), 0.3)
    assert_close(output, plain(query, key, value))


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_spans_equal_slices_with_soft_caps_sinks_and_narrow_values(softcap, has_sinks):
    query, key, value = tensors()
    value = value[..., :5]
    sinks = torch.randn(H, generator=torch.Generator().manual_seed(3)) if has_sinks else None
    keys, values = key.transpose(0, 1), value.transpose(0, 1)
    ours = attend(spans_of([(0, S)]), query, keys, values, 0.3, softcap=softcap, sink_H=sinks)
    expected = _attend_slice(
        query, key, value, make_tiles(VISIBLE), 0.3, softcap=softcap, sink_H=sinks
    )
    assert_close(ours, expected)
