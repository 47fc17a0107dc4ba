"""What of a conversation or text becomes a document, and what is cut."""

from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.config import DataSection, ObjectiveSection
from a2d_ray.data.packing.costs import Streams
from a2d_ray.data.packing.documents import (
    NO_ROOM,
    TOO_LONG,
    Cutting,
    conversation_documents,
    text_documents,
)

lengths = st.lists(st.integers(1, 30), min_size=2, max_size=8).filter(lambda x: len(x) % 2 == 0)


def segments_of(sizes):
    flat = iter(range(sum(sizes)))
    return [[next(flat) for _ in range(size)] for size in sizes]


def make(sizes, **options):
    flags = [bool(i % 2) for i in range(len(sizes))]
    return conversation_documents(segments_of(sizes), flags, Cutting(**options))


def test_all_answers_of_a_conversation_are_targets_of_one_document():
    (document,), reasons = make([3, 2, 4, 5], max_length=14)
    assert document.is_target == (False, True, False, True)
    assert document.is_complete and document.num_tokens == 14 and not reasons


def test_the_last_answer_only():
    (document,), _ = make([3, 2, 4, 5], max_length=14, targets="last")
    assert document.is_target == (False, False, False, True) and document.answer == 1


def test_an_answer_is_cut_at_a_block_edge_counted_from_its_start():
    (document,), _ = make([3, 10], max_length=12, edge=4)
    assert list(map(len, document.segments)) == [3, 8] and not document.is_complete


def test_an_answer_without_room_for_a_block_is_left_out_and_the_one_before_is_whole():
    (document,), _ = make([3, 4, 3, 10], max_length=12, edge=4)
    assert list(map(len, document.segments)) == [3, 4] and document.is_complete


def test_a_prompt_that_fills_the_document_is_dropped_with_a_reason():
    assert make([12, 5], max_length=12) == ([], [NO_ROOM])
    assert make([3, 2, 10, 5], max_length=12, targets="last") == ([], [NO_ROOM])
    assert make([3, 10], max_length=12, truncation="filter") == ([], [TOO_LONG])


def test_mdlm_makes_one_document_per_answer():
    documents, reasons = make([3, 2, 4, 5, 9, 9], max_length=16, is_split=True)
    assert [d.is_target for d in documents] == [(False, True), (False, False, False, True)]
    assert [d.answer for d in documents] == [0, 1] and reasons == [NO_ROOM]


@given(sizes=lengths, max_length=st.integers(4, 100), edge=st.sampled_from([1, 4]))
def test_documents_are_prefixes_that_end_with_a_target(sizes, max_length, edge):
    whole = list(range(sum(sizes)))
    for is_split in (False, True):
        documents, reasons = make(sizes, max_length=max_length, edge=edge, is_split=is_split)
        assert len(documents) + len(reasons) == (len(sizes) // 2 if is_split else 1)
        for document in documents:
            flat = [i for segment in document.segments for i in segment]
            assert flat == whole[: len(flat)] and len(flat) <= max_length
            assert document.is_target[-1]
            cut = len(document.segments[-1]) < sizes[len(document.segments) - 1]
            assert document.is_complete != cut
            assert not cut or len(document.segments[-1]) % edge == 0


@given(size=st.integers(1, 100), max_length=st.integers(1, 30), eos=st.sampled_from([None, 7]))
def test_text_is_cut_without_loss(size, max_length, eos):
    documents = list(text_documents(list(range(size)), eos, max_length))
    flat = [i for d in documents for i in d.segments[0]]
    assert flat == [*range(size), *([eos] if eos else [])]
    assert all(d.num_tokens <= max_length and d.is_target == (True,) for d in documents)
    complete = [d.is_complete for d in documents]
    assert complete == [False] * (len(documents) - 1) + [eos is not None]


def test_the_edge_follows_the_grid():
    data = DataSection(spec="x", max_length=64)

    def cutting(**options):
        return Streams.of(data, ObjectiveSection(**options)).cutting(data)

    edges = {
        grid: cutting(name="bd3lm", block_size=8, block_grid=grid).edge
        for grid in ("segment", "prompt_end", "absolute")
    }
    assert edges == {"segment": 8, "prompt_end": 8, "absolute": 1}
    assert cutting(name="mdlm").is_split
