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
