"""Every attention backend gives the hidden states and gradients of the dense mask."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from a2d_ray.diffusion.coverage import TILE
from a2d_ray.diffusion.layout import PAD_DOC, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, diffusion_loss
from a2d_ray.models import flex_attention
from a2d_ray.models.architectures import Architecture
from a2d_ray.models.forward_plan import plan_forward
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.miniature import make_miniature
from a2d_ray.models.parts import head_of
from a2d_ray.proving.tiny import tiny_config
from tests.closeness import assert_close
from tests.diffusion.test_objectives import CASES, MASK, backbone_of, gradients
from tests.diffusion.test_tiles import dense_of_layout
from tests.rows import packed_row, split_documents
from tests.tiny import tiny_a2d_model


def case_layout(spec, documents):
    rows = [packed_row(documents), *split_documents(packed_row(documents, seed=1))[:2]]
    return build_layout(rows, spec)


def flex_plan(layout, is_causal_clean=False):
    """The plan of a device that is no CPU."""
    return plan_forward(layout, is_causal_clean=is_causal_clean, device_type="cuda")


@pytest.mark.parametrize(("spec", "documents"), CASES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_dense_mask(spec, documents):
    """The CPU twin of what CUDA runs compiled (forward; its CPU version has no backward)."""
    layout = case_layout(spec, documents)
    is_real = layout.doc_RT != PAD_DOC
    model = tiny_a2d_model("qwen3")
    with torch.no_grad():
        dense = backbone_of(model, is_causal_clean=spec.causal_clean)(layout.ids_RT, layout)
        plan = flex_plan(layout, spec.causal_clean)
        ours = layout_hidden(model, layout.ids_RT, layout, spec.causal_clean, plan=plan)
    assert_close(ours[is_real], dense[is_real])
    assert not ours[~is_real].any()


@pytest.mark.parametrize(("spec", "documents"), CASES)
def test_one_row_has_the_gradients_of_padded_rows(spec, documents, monkeypatch):
    """The mask is read tile by tile, as a kernel reads it; the padded form attends densely."""
    layout = case_layout(spec, documents)
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(3, dtype=torch.int64))
    loss = LossSpec(mask_id=MASK)
    dense = tiny_a2d_model("llama")
    backbone = backbone_of(dense, is_causal_clean=spec.causal_clean)
    padded = diffusion_loss(layout, noise, backbone, head_of(dense), loss).loss

    monkeypatch.setattr(flex_attention, "_kernel", lambda _: by_tiles)
    model, plan = tiny_a2d_model("llama"), flex_plan(layout, spec.causal_clean)

    def in_one_row(ids, layout):
        return layout_hidden(model, ids, layout, spec.causal_clean, plan=plan)

    ours = diffusion_loss(layout, noise, in_one_row, head_of(model), loss).loss
    assert_close(ours, padded)
    assert_close(gradients(model, ours), gradients(dense, padded))


def by_tiles(query, key, value, *, block_mask, scale, **_):
    """Attention that looks into the tiles of a mask which are listed, and nowhere else."""
    allowed = allowed_by_tiles(block_mask)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)


def allowed_by_tiles(mask):
    """The dense mask [N, N] that a kernel would see."""
    tiles = [listed(mask, f"{which}kv") for which in ("", "full_")]
    partial, full = (each.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1) for each in tiles)
    index = torch.arange(mask.seq_lengths[0])
    zero = torch.tensor(0)
    return full | (partial & mask.mask_mod(zero, zero, index[:, None], index[None, :]))


def listed(mask, name):
    """Tiles in one of a mask's lists, bool [B, B]."""
    number, columns = (getattr(mask, f"{name}_{what}") for what in ("num_blocks", "indices"))
    is_in = torch.zeros(columns.shape[-2:], dtype=torch.bool)
    for row, (count, order) in enumerate(zip(number[0, 0].tolist(), columns[0, 0], strict=True)):
        is_in[row, order[:count].long()] = True
    return is_in


@pytest.mark.parametrize(("spec", "documents"), CASES)
def test_the_mask_and_its_transpose_are_the_predicate(spec, documents):
    layout = case_layout(spec, documents)
    plan = flex_plan(layout, spec.causal_clean)
    mask = plan.attention_state()["block_mask"]
    number = plan.tokens.num_tokens
    expected = dense_of_layout(layout, spec.causal_clean)
    assert torch.equal(allowed_by_tiles(mask)[:number, :number], expected)
    for which in ("", "full_"):
        rows, columns = (listed(mask, which + side) for side in ("kv", "q"))
        assert torch.equal(rows, columns.T)


def test_no_tensor_of_a_plan_stays_behind():
    """With the predicate's own: a mask on a second GPU reads nothing of the first or the host."""
    layout = case_layout(*CASES[0])
    plan = flex_plan(layout).to("meta")
    found = [plan.noised_n, *(getattr(plan.blocks, name) for name in BlockMask._TENSOR_ATTRS[:8])]
    found += [x for x in vars(plan.tokens).values() if isinstance(x, torch.Tensor)]
    assert len(found) == 14 and {x.device.type for x in found} == {"meta"}
    index = torch.zeros(1, dtype=torch.int64, device="meta")
    seen = plan.attention_state()["block_mask"].mask_mod(index, index, index, index)
    assert seen.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize(("spec", "documents"), CASES)
def test_cuda_equals_cpu(spec, documents):
    layout = case_layout(spec, documents)
    is_real = layout.doc_RT != PAD_DOC
    results = []
    for device in ("cpu", "cuda"):
        model = tiny_a2d_model("llama", hidden_size=64).to(device)
        here = layout.to(device)
        hidden = layout_hidden(model, here.ids_RT, here, spec.causal_clean)
        (hidden[here.doc_RT != PAD_DOC] ** 2).sum().backward()
        gradients = {name: p.grad.cpu() for name, p in model.model.named_parameters()}
        results.append((hidden[here.doc_RT != PAD_DOC].cpu(), gradients))
    assert is_real.any()
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rounding=1e-3)


def test_a_model_is_left_as_it_was():
    spec, documents = CASES[0]
    model, layout = tiny_a2d_model("llama"), case_layout(spec, documents)
    before = model.config._attn_implementation
    layout_hidden(model, layout.ids_RT, layout, False)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "deepseek_v3", "stablelm"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_of_families_outside_llamas_form(family):
    """Soft-caps, sinks, values of another width, layers that drop keyword arguments."""
    spec, documents = CASES[0]
    layout = case_layout(spec, documents)
    is_real = layout.doc_RT != PAD_DOC
    model = make_miniature(Architecture.of(family), tiny_config(family)).a2d
    with torch.no_grad():
        dense = model.base_model(
            input_ids=layout.ids_RT,
            attention_mask=dense_mask(layout, is_causal_clean=spec.causal_clean),
            position_ids=layout.position_RT,
            use_cache=False,
        ).last_hidden_state
        plan = flex_plan(layout, spec.causal_clean)
        ours = layout_hidden(model, layout.ids_RT, layout, spec.causal_clean, plan=plan)
    assert_close(ours[is_real], dense[is_real])
