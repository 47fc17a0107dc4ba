"""Costs in plain arithmetic are the tokens of the layout."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.config import DataSection, ObjectiveSection
from a2d_ray.data.packing.costs import Streams
from a2d_ray.data.packing.documents import Document
from a2d_ray.diffusion.layout import LayoutSpec, PackedRow, build_layout, document_costs

sizes = st.lists(st.integers(1, 30), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0)


def document(lengths, targets, is_complete):
    return Document(
        segments=tuple(list(range(n)) for n in lengths),
        is_target=tuple(targets),
        is_complete=is_complete,
        answer=0,
    )


def laid_out(doc, streams, block_size, views):
    """Tokens of the document in its layout."""
    row, spec = packed(doc, streams, block_size, views)
    return int(document_costs(row, spec, eos_tail=streams.eos_tail))


def packed(doc, streams, block_size, views):
    """The document as a row, and how it is laid out."""
    lengths = [len(segment) for segment in doc.segments]
    row = PackedRow(
        ids_C=torch.zeros(sum(lengths), dtype=torch.int64),
        doc_C=torch.zeros(sum(lengths), dtype=torch.int64),
        segment_C=torch.tensor([s for s, n in enumerate(lengths) for _ in range(n)]),
        is_target_C=torch.tensor(
            [t for t, n in zip(doc.is_target, lengths, strict=True) for _ in range(n)]
        ),
        doc_id_D=torch.tensor([1]),
        is_complete_D=torch.tensor([doc.is_complete]),
    )
    spec = LayoutSpec(
        objective=streams.objective,
        block_size=block_size,
        block_grid=streams.block_grid,
        views=views,
        right_shift=streams.right_shift,
    )
    return row, spec


@given(
    lengths=sizes,
    block_size=st.sampled_from([1, 3, 4, 8]),
    views=st.integers(1, 2),
    kind=st.sampled_from(["mdlm", "segment", "absolute", "prompt_end"]),
    is_complete=st.booleans(),
    is_text=st.booleans(),
    right_shift=st.booleans(),
)
def test_a_cost_is_the_number_of_tokens_in_the_layout(
    lengths, block_size, views, kind, is_complete, is_text, right_shift
):
    lengths = lengths[:1] if is_text else lengths
    all_answers = [is_text or bool(i % 2) for i in range(len(lengths))]
    last_answer = [i == len(lengths) - 1 for i in range(len(lengths))]
    streams = Streams(
        objective="mdlm" if kind == "mdlm" else "bd3lm",
        block_grid="segment" if kind == "mdlm" else kind,
        block_size=block_size,
        views=views,
        eos_tail=5 if kind == "mdlm" else 0,
        right_shift=right_shift and kind in ("absolute", "prompt_end"),
    )
    doc = document(lengths, all_answers if kind == "segment" else last_answer, is_complete)
    assert streams.cost(doc) == laid_out(doc, streams, block_size, views)


@given(lengths=sizes, is_complete=st.booleans(), views=st.integers(1, 2))
def test_a_set_for_a_sweep_holds_every_block_size_that_divides_and_fewer_views(
    lengths, is_complete, views
):
    data = DataSection(spec="x", max_length=64, max_block_size=16, max_views=2)
    streams = Streams.of(data, ObjectiveSection(name="bd3lm", block_size=4))
    assert streams == Streams.of(data, ObjectiveSection(name="bd3lm", block_size=16, views=2))
    doc = document(lengths, [bool(i % 2) for i in range(len(lengths))], is_complete)
    for block_size in (1, 2, 4, 8, 16):
        assert laid_out(doc, streams, block_size, views) <= streams.cost(doc)


@given(lengths=sizes, is_complete=st.booleans(), block_size=st.sampled_from([1, 4, 8]))
def test_a_row_holds_a_first_block_of_any_length(lengths, is_complete, block_size):
    objective = ObjectiveSection(
        name="bd3lm",
        block_size=block_size,
        clean_attention="causal",
        ar_loss_weight=1.0,
        first_block="random",
    )
    streams = Streams.of(DataSection(spec="x", max_length=64), objective)
    doc = document(lengths, [bool(i % 2) for i in range(len(lengths))], is_complete)
    row, spec = packed(doc, streams, block_size, 1)
    spec = replace(spec, causal_clean=True, ar_targets=True)
    tokens = [
        int((build_layout([row], spec, block_shift_D=torch.tensor([shift])).doc_RT == 0).sum())
        for shift in range(block_size)
    ]
    assert max(tokens) <= streams.cost(doc)


def test_drawn_block_sizes_and_an_ar_loss_count_the_same_bound():
    data = DataSection(spec="x", max_length=64)
    drawn = Streams.of(data, ObjectiveSection(name="bd3lm", block_size=[4, 16, 8], views=2))
    swept = DataSection(spec="x", max_length=64, max_block_size=16, max_views=2)
    assert drawn == Streams.of(swept, ObjectiveSection(name="bd3lm", block_size=4))
    ar = ObjectiveSection(
        name="bd3lm", block_size=16, views=2, clean_attention="causal", ar_loss_weight=0.1
    )
    assert Streams.of(data, ar) == drawn


@pytest.mark.parametrize(
    ("max_length", "tokens_per_row", "length"),
    [(512, 2048, 512), (768, 2048, 512), (1000, 2048, 1000), (100, 2048, 100), (512, 1300, 324)],
)
def test_whole_stretches_of_text_fill_a_row(max_length, tokens_per_row, length):
    streams = Streams(objective="bd3lm", block_grid="segment", block_size=4, views=1)
    assert streams.longest_text(max_length, tokens_per_row) == length
