"""Tiles of a mask, found without looking at pairs of tokens, are those of the dense mask."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.diffusion.coverage import tile_coverage
from a2d_ray.diffusion.flat import flatten
from a2d_ray.diffusion.layout import PAD_DOC, LayoutSpec, build_layout
from a2d_ray.diffusion.masks import may_attend
from tests.diffusion.test_layout import documents
from tests.rows import packed_row


def dense(tokens, is_causal_clean):
    """The predicate over tokens in one row [N, N]."""
    columns = (tokens.doc_N, tokens.stream_N, tokens.block_N, tokens.position_N)
    pairs = [(x[:, None], x[None, :]) for x in columns]
    return may_attend(*pairs, is_causal_clean=is_causal_clean)


@given(
    st.lists(documents, min_size=1, max_size=3),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2]),
    st.sampled_from(["bd3lm", "causal", "mdlm"]),
    st.sampled_from([1, 3, 8, 16]),
)
def test_tiles_are_those_of_the_dense_mask(rows, block_size, views, kind, size):
    spec = LayoutSpec(
        objective="mdlm" if kind == "mdlm" else "bd3lm",
        block_size=block_size,
        views=views,
        causal_clean=kind == "causal",
    )
    layout = build_layout([packed_row(docs) for docs in rows], spec)
    tokens = flatten(layout, size)
    mask = dense(tokens, spec.causal_clean)
    number = len(mask) // size
    tiles = mask.view(number, size, number, size)
    seen, is_open = tile_coverage(tokens, is_causal_clean=spec.causal_clean, size=size)
    assert torch.equal(seen, tiles.any(3).any(1))
    assert torch.equal(is_open, tiles.all(3).all(1))


@given(st.lists(documents, min_size=1, max_size=3), st.sampled_from([1, 8]))
def test_one_row_holds_every_token_once_and_documents_stay_apart(rows, size):
    layout = build_layout([packed_row(docs) for docs in rows], LayoutSpec(objective="bd3lm"))
    tokens = flatten(layout, size)
    is_real = layout.doc_RT != PAD_DOC
    places = tokens.place_N[: tokens.num_tokens]
    assert places.tolist() == is_real.flatten().nonzero()[:, 0].tolist()
    assert len(tokens.doc_N) % size == 0 and len(tokens.doc_N) < tokens.num_tokens + size
    assert tokens.doc_N[-1] == (PAD_DOC if tokens.num_tokens % size else sum(map(len, rows)) - 1)
    row = places // is_real.shape[1]
    pairs = torch.stack([row, layout.doc_RT[is_real]])
    assert len(pairs.unique(dim=1).T) == tokens.doc_N[: tokens.num_tokens].max() + 1
