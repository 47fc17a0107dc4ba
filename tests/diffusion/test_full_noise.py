"""Noise `full`: whole documents of masks among partly masked ones, all weighed alike."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from tests.closeness import assert_close
from tests.diffusion.test_noise import draw
from tests.rows import MIXED, packed_row, split_documents

ONE_VIEW = LayoutSpec(objective="bd3lm", block_size=4)
FULL = NoiseSpec(kind="full")
HALF = NoiseSpec(kind="full", full_share=0.5)
DOCUMENTS = [(i, [(2, False), (12, True)], False) for i in range(400)]


def is_full(layout, noise):
    """Whether each document of a row is masked whole, bool [D]."""
    hidden = torch.where(layout.is_target_RT, noise.is_masked_RT, True)[0]
    num_docs = int(layout.doc_RT.max()) + 1
    return torch.stack([hidden[layout.doc_RT[0] == d].all() for d in range(num_docs)])


def test_every_target_is_masked_with_weight_one():
    layout = build_layout([packed_row(MIXED)], ONE_VIEW)
    for fraction in (1.0, 0.1):  # corruption warm-up leaves drafts alone
        noise = draw(layout, FULL, max_fraction=fraction)
        assert torch.equal(noise.is_masked_RT, layout.is_target_RT)
        assert torch.equal(noise.weight_RT, layout.is_target_RT.float())


@given(share=st.floats(0, 1), epoch=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_any_share_weighs_a_target_one_in_every_draw(share, epoch, seed):
    layout = build_layout([packed_row(MIXED)], ONE_VIEW)
    noise = draw(layout, NoiseSpec(kind="full", full_share=share), epoch, seed=seed)
    assert_close(noise.weight_RT.sum(), layout.num_targets)


def test_a_share_of_documents_is_full_and_the_others_are_exact():
    layout = build_layout([packed_row(DOCUMENTS)], ONE_VIEW)
    exact = draw(layout, NoiseSpec())
    noise = draw(layout, HALF)
    whole = is_full(layout, noise)
    assert 150 < int(whole.sum()) < 250  # 5 sigma
    rest = ~whole[layout.doc_RT[0]]
    assert torch.equal(noise.is_masked_RT[0][rest], exact.is_masked_RT[0][rest])
    assert torch.equal(noise.weight_RT[0][rest], exact.weight_RT[0][rest])
    warm = draw(layout, HALF, max_fraction=0.2)
    assert torch.equal(is_full(layout, warm) & whole, whole)
    assert set(warm.weight_RT[warm.is_masked_RT].tolist()) == {1.0}
    again = is_full(layout, draw(layout, HALF, epoch=1))
    assert 150 < int(again.sum()) < 250 and not torch.equal(again, whole)
    more = is_full(layout, draw(layout, NoiseSpec(kind="full", full_share=0.7)))
    assert torch.equal(more & whole, whole)


def test_full_documents_do_not_depend_on_their_packing():
    row = packed_row(MIXED)
    packed = build_layout([row], ONE_VIEW)
    noise = draw(packed, HALF)
    for index, alone in enumerate(split_documents(row)):
        expected = draw(build_layout([alone], ONE_VIEW), HALF)
        mine = packed.doc_RT[0] == index
        assert torch.equal(noise.is_masked_RT[0][mine], expected.is_masked_RT[0])
        assert torch.equal(noise.weight_RT[0][mine], expected.weight_RT[0])


def test_a_second_view_would_be_empty():
    layout = build_layout([packed_row(MIXED)], LayoutSpec(objective="bd3lm", views=2))
    with pytest.raises(ValueError, match="second view"):
        draw_noise(layout, FULL, seed=0, epoch_R=torch.zeros(1, dtype=torch.int64))
