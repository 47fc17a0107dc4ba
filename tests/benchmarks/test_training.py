"""Suite `training`: both contenders compute the same loss and gradient."""

from dataclasses import replace

import pytest
import torch

from a2d_ray.config import BenchmarkConfig
from benchmarks import training
from benchmarks.naive_training import naive_loss, padded_batch
from tests.closeness import assert_close
from tests.diffusion.test_objectives import gradients

TINY = replace(
    training.SIZES, hidden=32, intermediate=64, layers=1, heads=4, kv_heads=2, head_dim=8
)


@pytest.mark.parametrize("masked_logits", [False, True])
def test_naive_and_ours_have_one_gradient(masked_logits):
    module = training._module(TINY, seed=0)
    module.compute_dtype = torch.float32
    rows = training._tulu_like_documents(4, 384, seed=1)
    assert len({row.ids_C.numel() for row in rows}) > 1  # some are padded
    layout, noise = training._draw(rows, views=1)
    batch = padded_batch(rows, layout, noise, multiple=training.BLOCK_SIZE, pad_id=2)

    packed, drawn = training._draw([training._join(rows)], views=1)
    ours = module(packed, drawn).loss
    ours_gradients = gradients(module, ours)
    module.model.config._attn_implementation = "sdpa"
    naive = naive_loss(
        module.model, batch, block_size=32, mask_id=training.MASK_ID, masked_logits=masked_logits
    )
    assert_close(ours, naive)
    assert_close(ours_gradients, gradients(module, naive))


@pytest.mark.slow
def test_the_suite_yields_its_cases(monkeypatch):
    monkeypatch.setattr(training, "SIZES", TINY)
    monkeypatch.setattr(training, "LENGTHS", (64,))
    wanted = ["one_view_L64", "two_views_L64"]
    cases = list(training.run(BenchmarkConfig(suite="training", quick=True, cases=wanted)))
    assert [case.name for case in cases] == wanted
    for case in cases:
        assert case.ours > 0 and case.baseline_floor > 0 and case.facts["targets"] == 32
        assert case.facts["loss_difference"] < 1e-2
