"""Block-sparse attention equals dense attention: outputs and gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from a2d_ray.diffusion.layout import build_layout
from a2d_ray.diffusion.tiles import attention_tiles
from a2d_ray.models.block_attention import block_sparse_attention
from tests.closeness import assert_close
from tests.diffusion.test_objectives import CASES
from tests.diffusion.test_tiles import dense_of_layout
from tests.rows import packed_row, split_documents

HEADS, KEY_HEADS, DIM = 6, 2, 8


def inputs(num_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(heads):
        return torch.randn(1, heads, num_tokens, DIM, generator=generator).requires_grad_()

    return normal(HEADS), normal(KEY_HEADS), normal(KEY_HEADS)


def case_layout(spec, documents):
    rows = [packed_row(documents), *split_documents(packed_row(documents, seed=1))[:2]]
    layout = build_layout(rows, spec)
    return layout, dense_of_layout(layout, spec.causal_clean)


def attend(q, k, v, layout, spec, max_queries):
    tiles = attention_tiles(layout, is_causal_clean=spec.causal_clean, max_queries=max_queries)
    return block_sparse_attention(None, q, k, v, None, tiles=tiles, scaling=0.3)[0]


@pytest.mark.parametrize("max_queries", [3, 16, 1000])
@pytest.mark.parametrize(("spec", "documents"), CASES)
def test_outputs_and_gradients_equal_the_dense_mask(spec, documents, max_queries):
    layout, mask = case_layout(spec, documents)
    dense, tiled = inputs(len(mask)), inputs(len(mask))
    expected = scaled_dot_product_attention(
        *dense, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    ours = attend(*tiled, layout, spec, max_queries)
    assert_close(ours, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (ours * weights).sum().backward()
    assert_close([x.grad for x in tiled], [x.grad for x in dense])


def test_autocast_computes_products_in_bfloat16_and_stays_close():
    spec, documents = CASES[1]
    layout, mask = case_layout(spec, documents)
    q, k, v = inputs(len(mask))
    exact = attend(q, k, v, layout, spec, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = attend(q, k, v, layout, spec, 16)
    assert rounded.dtype == torch.bfloat16
    assert_close(rounded, exact, rounding=0.03)
    rounded.float().sum().backward()
    assert q.grad.dtype == torch.float32 and q.grad.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_soft_caps_sinks_and_narrow_values_equal_the_dense_mask(softcap, has_sinks):
    spec, documents = CASES[0]
    layout, mask = case_layout(spec, documents)
    sinks = torch.randn(HEADS, generator=torch.Generator().manual_seed(3)).requires_grad_()
    tiles = attention_tiles(layout, is_causal_clean=spec.causal_clean, max_queries=16)
    results = []
    for attention in (dense_attention, block_sparse_attention):
        q, k, v = inputs(len(mask))
        sinks.grad = None
        options = {"softcap": softcap, "s_aux": sinks if has_sinks else None}
        options |= {"mask": mask} if attention is dense_attention else {"tiles": tiles}
        out = attention(None, q, k, v[..., :5], None, scaling=0.3, **options)[0]
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        gradients = [x.grad for x in (q, k, v)] + ([sinks.grad.clone()] if has_sinks else [])
        results.append([out, *gradients])
    assert_close(results[1], results[0])


def dense_attention(module, q, k, v, _, *, scaling, softcap, s_aux, mask):
    """The formulas of Gemma 2's soft-cap and GPT-OSS's sinks, written out."""
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if s_aux is not None:
        column = s_aux.view(1, -1, 1, 1).expand(1, HEADS, scores.shape[2], 1)
        shares = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        shares = scores.softmax(-1)
    return (shares @ v).transpose(1, 2), None
