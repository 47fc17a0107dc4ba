"""The trained module computes document by document what the dense mask gives."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from a2d_ray.diffusion.layout import build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, diffusion_loss
from a2d_ray.models import flex_attention
from a2d_ray.models.architectures import ARCHITECTURES
from a2d_ray.models.forward_plan import plan_forward
from a2d_ray.training.module import DiffusionModule
from tests.closeness import assert_close
from tests.diffusion.test_objectives import CASES, MASK, backbone_of, gradients
from tests.rows import MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model
from tests.training.modules import module_of


@pytest.mark.parametrize(("spec", "documents"), CASES)
@pytest.mark.parametrize("architecture", [row.ar_model_type for row in ARCHITECTURES])
def test_ragged_equals_dense(architecture, spec, documents):
    rows = [packed_row(documents), *split_documents(packed_row(documents, seed=1))[:2]]
    layout = build_layout(rows, spec)
    noise = draw_noise(
        layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(len(rows), dtype=torch.int64)
    )
    dense = tiny_a2d_model(architecture)
    backbone = backbone_of(dense, is_causal_clean=spec.causal_clean)
    expected = diffusion_loss(layout, noise, backbone, dense.lm_head, LossSpec(mask_id=MASK))
    module = DiffusionModule(
        tiny_a2d_model(architecture),
        LossSpec(mask_id=MASK),
        is_causal_clean=spec.causal_clean,
        compute_dtype=torch.float32,
    )
    ours = module(layout, noise)
    assert_close(ours.loss, expected.loss)
    assert dense_mask(layout).any()
    assert_close(gradients(module.model, ours.loss), gradients(dense, expected.loss))


def test_gradient_checkpointing_changes_nothing():
    spec, documents = CASES[0]
    layout = build_layout([packed_row(documents)], spec)
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(1, dtype=torch.int64))
    results = []
    for is_checkpointed in (False, True):
        model = tiny_a2d_model("llama").train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        module = DiffusionModule(
            model, LossSpec(mask_id=MASK), is_causal_clean=False, compute_dtype=torch.float32
        )
        results.append(gradients(module, module(layout, noise).loss))
    assert_close(*results)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_change_nothing():
    from a2d_ray.config import ModelSection
    from a2d_ray.training.assembly import prepare_layers

    spec, documents = CASES[0]
    layout = build_layout([packed_row(documents)], spec)
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(1, dtype=torch.int64))
    results = []
    for is_compiled in (False, True):
        model = tiny_a2d_model("llama").train()
        prepare_layers(model, ModelSection(path="x", compile=is_compiled), torch.device("cpu"))
        module = module_of(model)
        results.append(gradients(module, module(layout, noise).loss))
    assert_close(*results)


@pytest.mark.parametrize(
    ("device", "section", "is_compiled"),
    [
        ("cpu", {}, False),
        ("cuda", {}, True),
        ("cuda", {"lora": {"r": 4}}, False),
        ("cuda", {"compile": False}, False),
        ("cpu", {"compile": True}, True),
    ],
)
def test_layers_are_compiled_on_gpus_unless_told_otherwise(device, section, is_compiled):
    from a2d_ray.config import ModelSection
    from a2d_ray.training.assembly import prepare_layers

    model = tiny_a2d_model("llama")
    prepare_layers(model, ModelSection(path="x", **section), torch.device(device))
    assert {layer._compiled_call_impl is not None for layer in model.model.layers} == {is_compiled}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_layer_is_one_graph_in_few_compilations():
    """As on GPUs: FlexAttention inside; layouts of several sizes."""
    torch._dynamo.reset()
    seen = CompileCounter()
    model = tiny_a2d_model("qwen3")
    model.config._attn_implementation = flex_attention.FLEX_ATTENTION
    layer = model.model.layers[0]
    layer.compile(fullgraph=True, backend=seen)
    for num_rows in (2, 9, 1, 20):
        rows = [packed_row(MIXED[: 1 + index % 2], seed=index) for index in range(num_rows)]
        plan = plan_forward(build_layout(rows, CASES[0][0]), device_type="cuda")
        position_ids = plan.tokens.position_N[None]
        hidden = torch.randn(*position_ids.shape, model.config.hidden_size)
        angles = model.model.rotary_emb(hidden, position_ids)
        with torch.no_grad():
            layer(
                hidden,
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
                position_ids=position_ids,
                position_embeddings=angles,
                **plan.attention_state(),
            )
    assert 1 <= seen.frame_count <= 4


def test_bfloat16_is_close_and_keeps_masters_in_float32():
    spec, documents = CASES[0]
    layout = build_layout([packed_row(documents)], spec)
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(1, dtype=torch.int64))
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        module = DiffusionModule(
            tiny_a2d_model("llama"),
            LossSpec(mask_id=MASK),
            is_causal_clean=False,
            compute_dtype=dtype,
        )
        losses.append(module(layout, noise).loss)
        assert losses[-1].dtype == torch.float32
    assert_close(losses[1], losses[0], rounding=2e-3)
    for gradient in gradients(module, losses[1]).values():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()
