"""Block sizes drawn per document: each is laid out as if its size were the only one."""

import pytest
import torch

from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import draw_block_shifts, draw_block_sizes
from tests.closeness import assert_close
from tests.diffusion.test_objectives import gradients, loss_of
from tests.rows import LAST_ONLY, MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model

SIZES = (2, 4, 8)


@pytest.mark.parametrize("grid", ["segment", "absolute", "prompt_end"])
def test_each_document_has_the_grid_of_its_size(grid):
    row = packed_row(MIXED if grid == "segment" else LAST_ONLY)
    sizes = torch.tensor([2, 8, 4, 2][: row.doc_id_D.numel()])
    spec = LayoutSpec(objective="bd3lm", block_size=16, block_grid=grid, views=2)
    layout = build_layout([row], spec, block_size_D=sizes)
    for d, alone in enumerate(split_documents(row)):
        own = LayoutSpec(objective="bd3lm", block_size=int(sizes[d]), block_grid=grid, views=2)
        expected, mine = build_layout([alone], own), layout.doc_RT[0] == d
        for name in ("ids_RT", "block_RT", "offset_RT", "stream_RT", "position_RT", "is_target_RT"):
            assert torch.equal(getattr(layout, name)[0][mine], getattr(expected, name)[0]), name


def test_gradient_is_that_of_the_documents_at_their_sizes():
    model, row = tiny_a2d_model("llama"), packed_row(MIXED)
    sizes = torch.tensor([2, 8, 4, 2])
    spec = LayoutSpec(objective="bd3lm", block_size=16)
    together = loss_of(model, [row], spec, block_size_D=sizes)
    alone = [
        loss_of(model, [document], LayoutSpec(objective="bd3lm", block_size=int(size)))
        for document, size in zip(split_documents(row), sizes, strict=True)
    ]
    assert together.num_targets == sum(sums.num_targets for sums in alone)
    expected = gradients(model, *(sums.loss for sums in alone))
    assert_close(gradients(model, together.loss), expected)


def test_sizes_are_uniform_functions_of_document_and_epoch():
    docs = torch.arange(9_000)
    first = draw_block_sizes(docs, SIZES, seed=1, epoch_D=torch.zeros_like(docs))
    again = draw_block_sizes(docs.flip(0), SIZES, seed=1, epoch_D=torch.zeros_like(docs)).flip(0)
    assert torch.equal(first, again)
    shares = torch.stack([(first == size).double().mean() for size in SIZES])
    assert (shares - 1 / 3).abs().max() < 0.02
    later = draw_block_sizes(docs, SIZES, seed=1, epoch_D=torch.ones_like(docs))
    assert 0.3 < float((first == later).double().mean()) < 0.37


def test_first_blocks_are_shorter_by_the_shift_and_the_others_whole():
    row = packed_row(MIXED)
    shifts = torch.tensor([0, 3, 1, 2][: row.doc_id_D.numel()])
    spec = LayoutSpec(objective="bd3lm", block_size=4, causal_clean=True, ar_targets=True)
    layout = build_layout([row], spec, block_shift_D=shifts)
    noised = layout.stream_RT[0] == 1
    for d, shift in enumerate(shifts.tolist()):
        mine = noised & (layout.doc_RT[0] == d)
        blocks, sizes = layout.block_RT[0][mine].unique(return_counts=True)
        segments = (layout.position_RT[0][mine].diff() != 1).nonzero()[:, 0] + 1
        firsts = layout.block_RT[0][mine][torch.cat([torch.tensor([0]), segments])]
        for block, size in zip(blocks.tolist(), sizes.tolist(), strict=True):
            assert size == 4 - shift if block in firsts else size <= 4
        assert layout.offset_RT[0][mine][0] == shift
    plain = build_layout([row], spec)
    for name in ("ids_RT", "position_RT", "is_target_RT"):
        whole = [getattr(each, name)[0][each.stream_RT[0] == 0] for each in (layout, plain)]
        assert torch.equal(*whole), "the clean stream knows no grid"


def test_shifts_are_uniform_functions_of_document_and_epoch():
    docs = torch.arange(9_000)
    sizes = torch.full_like(docs, 4)
    first = draw_block_shifts(docs, sizes, seed=1, epoch_D=torch.zeros_like(docs))
    assert (first.bincount(minlength=4) / len(docs) - 0.25).abs().max() < 0.02
    later = draw_block_shifts(docs, sizes, seed=1, epoch_D=torch.ones_like(docs))
    assert 0.22 < float((first == later).double().mean()) < 0.28
