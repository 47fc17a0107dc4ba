"""Every attention backend gives the hidden states and gradients of the dense mask."""

from types import SimpleNamespace

import pytest
import torch

from a2d_ray.diffusion.layout import PAD_DOC, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.models import flex_attention
from a2d_ray.models.architectures import Architecture
from a2d_ray.models.attention_state import attention_state
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.miniature import make_miniature
from a2d_ray.proving.tiny import tiny_config
from tests.closeness import assert_close
from tests.diffusion.test_objectives import CASES, backbone_of
from tests.rows import packed_row, split_documents
from tests.tiny import tiny_a2d_model


def case_layout(spec, documents):
    rows = [packed_row(documents), *split_documents(packed_row(documents, seed=1))[:2]]
    return build_layout(rows, spec)


def flex_hidden(model, ids, layout, is_causal_clean):
    model.config._attn_implementation = flex_attention.FLEX_ATTENTION
    return model.model(
        input_ids=ids,
        position_ids=layout.position_RT,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        block_mask=flex_attention.block_mask(layout, is_causal_clean=is_causal_clean),
    ).last_hidden_state


@pytest.mark.parametrize(("spec", "documents"), CASES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_dense_mask(spec, documents):
    """The CPU twin of what CUDA runs compiled (forward; its CPU version has no backward)."""
    layout = case_layout(spec, documents)
    is_real = layout.doc_RT != PAD_DOC
    model = tiny_a2d_model("qwen3")
    with torch.no_grad():
        dense = backbone_of(model, is_causal_clean=spec.causal_clean)(layout.ids_RT, layout)
        ours = flex_hidden(model, layout.ids_RT, layout, spec.causal_clean)
    assert_close(ours[is_real], dense[is_real])


@pytest.mark.parametrize(("spec", "documents"), CASES)
def test_block_mask_is_the_predicate(spec, documents):
    layout = case_layout(spec, documents)
    mask = flex_attention.block_mask(layout, is_causal_clean=spec.causal_clean)
    num_rows, length = layout.ids_RT.shape
    index = torch.arange(length)
    for row in range(num_rows):
        seen = mask.mask_mod(torch.tensor(row), torch.tensor(0), index[:, None], index[None, :])
        expected = dense_mask(layout, is_causal_clean=spec.causal_clean)[row, 0]
        assert torch.equal(seen, expected)


def test_the_block_mask_lies_where_the_layout_does(monkeypatch):
    """On the second GPU of a machine as well: a device has an index."""
    asked = []
    monkeypatch.setattr(
        flex_attention, "create_block_mask", lambda *_, device: asked.append(torch.device(device))
    )
    second = torch.device("cuda", 1)
    ids = SimpleNamespace(shape=(1, 128), device=second)
    flex_attention.block_mask(SimpleNamespace(ids_RT=ids))
    assert asked == [second]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
    mask = flex_attention.block_mask(layout, is_causal_clean=spec.causal_clean)
    with torch.no_grad(), attention_state(model, block_mask=mask) as passed:
        dense = model.base_model(
            input_ids=layout.ids_RT,
            attention_mask=dense_mask(layout, is_causal_clean=spec.causal_clean),
            position_ids=layout.position_RT,
            use_cache=False,
        ).last_hidden_state
        model.config._attn_implementation = flex_attention.FLEX_ATTENTION
        ours = model.base_model(
            input_ids=layout.ids_RT,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
            position_ids=layout.position_RT,
            use_cache=False,
            **passed,
        ).last_hidden_state
    assert_close(ours[is_real], dense[is_real])
