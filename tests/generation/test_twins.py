"""The engine's view of a model computes what the model computes."""

import pytest
import torch

from a2d_ray.generation.engine.attention import Round, Slice, make_tiles
from a2d_ray.generation.engine.twins import (
    FusedAttention,
    FusedMLP,
    FusedRMSNorm,
    PackedLinear,
    inference_twin,
)
from tests.closeness import assert_close
from tests.tiny import tiny_a2d_model

LENGTH, BLOCK = 300, 4  # more than one tile


def staircase():
    block = torch.arange(LENGTH) // BLOCK
    return (block[None, :] <= block[:, None])[None, None]


def twin_logits(twin, ids):
    visible = [(i // BLOCK + 1) * BLOCK for i in range(LENGTH)]
    tiles = make_tiles(visible)
    part = Slice(num_tokens=LENGTH, new_runs=None, all_runs=(), tiles=tiles)
    hidden = twin.model(
        input_ids=ids,
        position_ids=torch.arange(LENGTH)[None],
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        ragged=Round(slices=[part], store=None),
    ).last_hidden_state
    return twin.lm_head(hidden)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("is_fused", [True, False])
@torch.inference_mode()
def test_twin_equals_model(architecture, is_fused, monkeypatch):
    if not is_fused:  # as an architecture that the table does not know
        monkeypatch.setattr("a2d_ray.generation.engine.twins.FUSED_PREFIXES", ("Nothing",))
    model = tiny_a2d_model(architecture)
    ids = torch.randint(3, 259, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    twin = inference_twin(model)
    kinds = {type(module) for module in twin.modules()}
    fused = {FusedAttention, FusedMLP, FusedRMSNorm}
    assert kinds & fused == (fused if is_fused else set()) and PackedLinear in kinds
    assert_close(twin_logits(twin, ids), model(ids, staircase()).logits)


@torch.inference_mode()
def test_bfloat16_twin_is_as_close_to_float32_as_the_model():
    ids = torch.randint(3, 259, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    exact = tiny_a2d_model("qwen3")(ids, staircase()).logits
    model = tiny_a2d_model("qwen3").bfloat16()
    theirs = (model(ids, staircase()).logits.float() - exact).square().mean().sqrt()
    ours = (twin_logits(inference_twin(model), ids).float() - exact).square().mean().sqrt()
    assert ours < 1.25 * theirs


class HalfWeight(torch.nn.Linear):
    """As 4-bit layers do, it holds something else than W, and knows how to multiply with it."""

    def forward(self, x):
        return torch.nn.functional.linear(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize("part", ["q_proj", "o_proj", "gate_proj", "down_proj"])
@torch.inference_mode()
def test_layers_that_hold_other_weights_are_run_as_they_are(part):
    model = tiny_a2d_model("qwen3")
    for name, layer in model.named_modules():
        if name.endswith(part):
            layer.__class__ = HalfWeight
    ids = torch.randint(3, 259, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    twin = inference_twin(model)
    kinds = {type(module) for module in twin.modules()}
    fused = {"q_proj": FusedAttention, "o_proj": FusedAttention}.get(part, FusedMLP)
    assert HalfWeight in kinds and fused not in kinds
    assert_close(twin_logits(twin, ids), model(ids, staircase()).logits)


def test_twin_is_kept_until_the_weights_change():
    model = tiny_a2d_model("llama")
    first = inference_twin(model)
    assert inference_twin(model) is first
    with torch.no_grad():
        model.lm_head.weight[5] += 1
    assert inference_twin(model) is not first
