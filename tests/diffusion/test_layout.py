"""The layout of packed rows: hand-made examples, and what must hold for any documents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.diffusion.layout import PAD_DOC, LayoutSpec, PackedRow, build_layout, document_costs
from a2d_ray.diffusion.masks import dense_mask
from tests.rows import LAST_ONLY, MIXED, packed_row, split_documents

EOS = 2


def columns(layout, row=0):
    return {key: value[row].tolist() for key, value in vars(layout).items()}


def test_bd3lm_layout_by_hand():
    row = PackedRow(
        ids_C=torch.tensor([10, 11, 12, 13, 14, 15, 16, 17]),
        doc_C=torch.zeros(8, dtype=torch.int64),
        segment_C=torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]),
        is_target_C=torch.tensor([0, 0, 0, 1, 1, 0, 1, 1], dtype=torch.bool),
        doc_id_D=torch.tensor([100]),
        is_complete_D=torch.tensor([True]),
    )
    spec = LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS)
    # clean: prompt, answer, stretch (the last answer's clean copy would be attended by nobody);
    # noisy: two blocks of answer + EOS fill.
    assert columns(build_layout([row], spec)) == {
        "ids_RT": [10, 11, 12, 13, 14, 15] + [13, 14, EOS, EOS] + [16, 17, EOS, EOS],
        "doc_RT": [0] * 14,
        "doc_id_RT": [100] * 14,
        "block_RT": [0, 0, 0, 1, 1, 2] + [1] * 4 + [3] * 4,
        "offset_RT": [0, 1, 2, 0, 1, 0] + [0, 1, 2, 3] * 2,
        "stream_RT": [0] * 6 + [1] * 8,
        "position_RT": [0, 1, 2, 3, 4, 5] + [3, 4, 5, 6] + [6, 7, 8, 9],
        "is_target_RT": [False] * 6 + [True] * 8,
        "is_ar_target_RT": [False] * 14,
    }


@pytest.mark.parametrize(
    ("grid", "blocks"),
    [("absolute", [0] * 4 + [1] * 3 + [1] * 4 + [2] * 4), ("prompt_end", None)],
)
def test_grids_from_the_document(grid, blocks):
    row = packed_row([(1, [(6, False), (5, True)], True)])
    spec = LayoutSpec(objective="bd3lm", block_size=4, block_grid=grid, eos_id=EOS)
    layout = build_layout([row], spec)
    noisy = layout.stream_RT[0] == 1
    if grid == "absolute":  # the first noisy block begins with prompt: kept, but no target
        assert layout.position_RT[0][noisy].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
        assert layout.is_target_RT[0][noisy].tolist() == [False] * 2 + [True] * 6
        assert layout.position_RT[0][~noisy].tolist() == list(range(8))
    else:  # as if two pads stood before the prompt
        assert layout.block_RT[0][~noisy].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
        assert layout.position_RT[0][noisy].tolist() == list(range(6, 14))


segments = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3).map(
    lambda pairs: [part for a, b in pairs for part in ((a, False), (b, True))]
)
documents = st.lists(st.tuples(segments, st.booleans()), min_size=1, max_size=5).map(
    lambda docs: [(i, segs, complete) for i, (segs, complete) in enumerate(docs)]
)


@given(documents, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]))
def test_every_target_once_per_view_and_costs_add_up(docs, block_size, views):
    row = packed_row(docs)
    spec = LayoutSpec(objective="bd3lm", block_size=block_size, views=views, eos_id=EOS)
    layout = build_layout([row], spec)
    for view in range(1, views + 1):
        picked = layout.is_target_RT[0] & (layout.stream_RT[0] == view)
        is_fill = layout.ids_RT[0][picked] == EOS  # random ids start at 3
        assert layout.ids_RT[0][picked][~is_fill].tolist() == row.ids_C[row.is_target_C].tolist()
    costs = document_costs(row, spec)
    alone = [int((build_layout([r], spec).doc_RT != PAD_DOC).sum()) for r in split_documents(row)]
    assert costs.tolist() == alone
    assert costs.sum() == layout.doc_RT.shape[1]


@given(documents)
def test_mask_never_crosses_documents_nor_looks_ahead(docs):
    layout = build_layout([packed_row(docs)], LayoutSpec(objective="bd3lm", block_size=4))
    mask = dense_mask(layout)[0, 0]
    doc, stream = layout.doc_RT[0], layout.stream_RT[0]
    block = layout.block_RT[0]
    query, key = mask.nonzero(as_tuple=True)
    assert (doc[query] == doc[key]).all() and mask.any(-1).all()
    assert (block[key] <= block[query]).all()
    noisy_query = stream[query] > 0
    clean_key = stream[key] == 0
    assert (block[key] < block[query])[noisy_query & clean_key].all()
    assert (clean_key | noisy_query).all()  # the clean stream never sees a noisy one


def test_mdlm_has_one_block_and_a_tail_behind_complete_answers():
    row = packed_row(LAST_ONLY)
    spec = LayoutSpec(objective="mdlm", views=2, eos_id=EOS)
    layout = build_layout([row], spec, eos_tail_D=torch.tensor([3, 5, 1]))
    lengths = torch.bincount(layout.doc_RT[0])
    assert lengths.tolist() == [2 * (11 + 3), 2 * 11, 2 * (16 + 1)]  # the second is cut: no tail
    assert set(layout.stream_RT[0].tolist()) == {1, 2} and not layout.block_RT.any()
    assert layout.num_targets == 2 * (6 + 3 + 4 + 8 + 1)


def test_rows_are_padded_to_the_longest_and_padding_sees_only_padding():
    rows = split_documents(packed_row(MIXED))
    layout = build_layout(rows, LayoutSpec(objective="bd3lm", block_size=4))
    is_pad = layout.doc_RT == PAD_DOC
    mask = dense_mask(layout)[:, 0]
    assert is_pad.any() and mask.any(-1).all()
    assert not (mask & (is_pad[:, :, None] != is_pad[:, None, :])).any()
    assert not layout.is_target_RT[is_pad].any()


def test_a_document_without_targets_is_refused():
    with pytest.raises(ValueError, match="without targets"):
        build_layout([packed_row([(1, [(4, False)], True)])], LayoutSpec(objective="bd3lm"))
