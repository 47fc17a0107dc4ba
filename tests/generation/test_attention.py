"""Both attention backends equal plain softmax attention over what each token sees."""

import pytest
import torch

from a2d_ray.generation.engine.attention import Round, Slice, _attend_cpu, _attend_sdpa, make_tiles
from a2d_ray.generation.engine.cache import KVStore
from tests.closeness import assert_close

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


@pytest.mark.parametrize("attend", [_attend_cpu, _attend_sdpa])
def test_backends_equal_plain_attention(attend):
    tiles = make_tiles(VISIBLE, torch.device("cpu"))
    assert len(tiles) > 1 and tiles[0].num_keys < S
    got = attend(*tensors(), tiles, 0.3)
    assert_close(got, plain(*tensors()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_equals_cpu(dtype):
    device = torch.device("cuda")
    got = _attend_sdpa(*tensors(device, dtype), make_tiles(VISIBLE, device), 0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert_close(got.cpu(), plain(*tensors()), rounding=tolerance)


@pytest.mark.parametrize("runs", [[(0, S)], [(300, 400), (20, 180)], [(10, 11), (500, 759)]])
def test_keys_and_values_are_read_as_they_were_written(runs):
    query, key, value = tensors()
    store = KVStore(
        num_layers=2,
        num_key_heads=K,
        head_dim=D,
        capacity=800,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    store.write(1, runs, key, value)
    got = store.read(1, runs)
    assert torch.equal(got[0], key) and torch.equal(got[1], value)
    part = Slice(
        num_tokens=N, new_runs=[], all_runs=runs, tiles=make_tiles(VISIBLE, torch.device("cpu"))
    )
    round_ = Round(slices=[part], store=store)
    output = round_.attend(1, query, key[:, :N].transpose(0, 1), value[:, :N].transpose(0, 1), 0.3)
    assert_close(output, plain(query, key, value))
