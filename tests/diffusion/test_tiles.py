"""Tiles say exactly what the dense predicate says, and little besides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.diffusion.layout import PAD_DOC, LayoutSpec, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.tiles import attention_tiles, split_tiles
from tests.diffusion.test_layout import documents
from tests.diffusion.test_objectives import CASES
from tests.rows import packed_row, split_documents


def dense_of_tiles(tiles, num_tokens, num_keys=None):
    """The boolean mask [N, K] that tiles stand for; every query is in one of them."""
    mask = torch.zeros(num_tokens, num_keys or num_tokens, dtype=torch.bool)
    covered = [0] * num_tokens
    for tile in tiles:
        columns = torch.cat([torch.arange(a, b) for a, b in tile.keys])
        for query in range(tile.start, tile.stop):
            seen = torch.ones(columns.numel(), dtype=torch.bool)
            if tile.hidden is not None:
                seen[tile.num_open :] = ~tile.hidden[query - tile.start]
            mask[query, columns[seen]] = True
            covered[query] += 1
    assert covered == [1] * num_tokens
    return mask


def dense_of_layout(layout, is_causal_clean):
    """The predicate between real tokens of all rows."""
    is_real = layout.doc_RT != PAD_DOC
    masks = [
        m[0][r][:, r]
        for m, r in zip(dense_mask(layout, is_causal_clean=is_causal_clean), is_real, strict=True)
    ]
    return torch.block_diag(*masks).bool()


@pytest.mark.parametrize("max_queries", [3, 8, 16, 1000])
@pytest.mark.parametrize(("spec", "docs"), CASES)
def test_tiles_are_the_predicate(spec, docs, max_queries):
    rows = [packed_row(docs), *split_documents(packed_row(docs, seed=1))[:2]]
    layout = build_layout(rows, spec)
    expected = dense_of_layout(layout, spec.causal_clean)
    tiles = attention_tiles(layout, is_causal_clean=spec.causal_clean, max_queries=max_queries)
    assert max(tile.stop - tile.start for tile in tiles) <= max_queries
    assert torch.equal(dense_of_tiles(tiles, len(expected)), expected)


@given(documents, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), st.integers(1, 40))
def test_tiles_are_the_predicate_for_any_documents(docs, block_size, views, max_queries):
    layout = build_layout(
        [packed_row(docs)], LayoutSpec(objective="bd3lm", block_size=block_size, views=views)
    )
    expected = dense_of_layout(layout, False)
    tiles = attention_tiles(layout, max_queries=max_queries)
    assert torch.equal(dense_of_tiles(tiles, len(expected)), expected)


@given(documents, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), st.integers(1, 40))
def test_tiles_with_the_clean_tokens_first_are_the_predicate_in_that_order(
    docs, block_size, views, max_queries
):
    spec = LayoutSpec(objective="bd3lm", block_size=block_size, views=views, causal_clean=True)
    layout = build_layout([packed_row(docs), packed_row(docs[:1], seed=1)], spec)
    stream_n = layout.stream_RT[layout.doc_RT != PAD_DOC]
    order = (stream_n > 0).int().argsort(stable=True)
    expected = dense_of_layout(layout, True)[order][:, order]
    kinds = split_tiles(layout, is_causal_clean=True, max_queries=max_queries)
    sizes = [int((stream_n == 0).sum()), int((stream_n > 0).sum())]
    found = [dense_of_tiles(*pair, len(order)) for pair in zip(kinds, sizes, strict=True)]
    assert torch.equal(torch.cat(found), expected)


def test_little_is_computed_in_vain():
    """A long document: tiles hold at most 1.2 times the pairs that attend to each other."""
    layout = build_layout(
        [packed_row([(1, [(512, False), (512, True)], True)])],
        LayoutSpec(objective="bd3lm", block_size=32, views=2),
    )
    pairs = sum(
        (tile.stop - tile.start) * sum(b - a for a, b in tile.keys)
        for tile in attention_tiles(layout)
    )
    assert pairs <= 1.2 * int(dense_mask(layout).sum())
