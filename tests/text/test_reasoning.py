"""A growing answer, its thought apart: the same parts however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.data.thoughts import split_thought, with_thought
from a2d_ray.text.reasoning import ThoughtStream, open_block

PIECES = st.sampled_from(
    ["<think>", "</think>", "<th", "ink>", "</", "think>", "\n", " ", "a", "bc", "<", ">"]
)


def parts(pieces, before=""):
    stream = ThoughtStream(before)
    found = [*map(stream.push, pieces), stream.finish()]
    return tuple("".join(texts) for texts in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        ("<think>\nR\n</think>\n\na b ", "", ("R", "a b ")),
        ("R\n</think>\n\na", "<think>\n", ("R", "a")),
        ("more\n</think>a", "<think>\nR", ("more", "a")),
        ("a</think>b", "", ("", "a</think>b")),
        ("a <think>R</think>", "", ("", "a <think>R</think>")),
        ("<think></think>a", "", ("", "a")),
        ("<think>R<think>S</think>T</think>", "", ("R<think>S", "T</think>")),
        ("<think>\nR </thi", "", ("R </thi", "")),
        (" \n", "", ("", " \n")),
        ("<thin", "", ("", "<thin")),
        ("go on", "Well, ", ("", "go on")),
        ("a", "<think>\nR\n</think>\n\n", ("", "a")),
    ],
)
def test_thought_and_answer(text, before, expected):
    assert parts([text], before) == expected
    assert parts(list(text), before) == expected


@given(pieces=st.lists(PIECES, max_size=12), is_open=st.booleans())
def test_the_parts_do_not_depend_on_how_a_text_is_cut(pieces, is_open):
    before = "<think>\n" if is_open else ""
    whole = parts(["".join(pieces)], before)
    assert parts(pieces, before) == parts(list("".join(pieces)), before) == whole


@given(pieces=st.lists(PIECES, max_size=12))
def test_a_whole_block_is_split_as_that_of_a_row(pieces):
    text = with_thought("R", "".join(pieces))
    assert parts([text]) == split_thought(text)


def test_only_a_block_at_the_end_of_a_prompt_is_open():
    assert open_block("<a><think>\n") == "<think>\n"
    assert open_block("<think>\n\n</think>\n\n") == open_block("what is <think>?") == ""
