"""Rows that share word n-grams with evaluation sets, against a naive search."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.decontamination import evaluation_ngrams, overlaps
from a2d_ray.data.sources.embedded import embedded_rows
from a2d_ray.data.sources.shards import Shape

# The shape of GSM8K; the first two are of the kind that gsm_symbolic's templates come from.
EVALUATION = [
    {
        "question": "A fog bank rolls in from the ocean to cover a city. It takes 42 minutes to "
        "cover every 3 miles of the city. If the city is 42 miles across from oceanfront to the "
        "opposite inland edge, how many minutes will it take?",
        "answer": "The fog bank covers it in 14 steps. #### 588",
    },
    {"question": "What is two and two?", "answer": "#### 4"},
]


def ngrams(tmp_path, rows, size):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return evaluation_ngrams([str(path)], size, Shape())


def conversation(question, answer="It is so."):
    return Example(messages=(("user", question), ("assistant", answer)))


def test_thirteen_words_in_a_row_are_found_whatever_case_and_punctuation(tmp_path):
    found = ngrams(tmp_path, EVALUATION, 13)
    stretch = "so: FROM the ocean, to cover a city; it takes 42 minutes to cover every 4 miles"
    assert overlaps(conversation(stretch), found)
    assert overlaps(conversation("q", stretch), found)
    assert not overlaps(conversation(stretch.replace("cover a", "cover the")), found)


def test_an_evaluation_row_of_few_words_counts_as_a_whole(tmp_path):
    found = ngrams(tmp_path, EVALUATION, 13)
    assert overlaps(conversation("Now, what is two and two?"), found)
    assert not overlaps(conversation("What is two and three?"), found)
    assert not overlaps(conversation("4"), found)  # too short to look for


words = st.lists(st.sampled_from("abc"), min_size=5, max_size=14)


@given(evaluation=st.lists(words, min_size=1, max_size=4), row=words, size=st.integers(5, 8))
def test_it_finds_what_a_naive_search_finds(tmp_path_factory, evaluation, row, size):
    rows = [{"text": " ".join(words)} for words in evaluation]
    found = ngrams(tmp_path_factory.mktemp("set"), rows, size)
    naive = any(
        words[i : i + n] == row[j : j + n]
        for words in evaluation
        for n in [min(size, len(words))]
        for i in range(len(words) - n + 1)
        for j in range(len(row) - n + 1)
    )
    assert overlaps(Example(text=" ".join(row)), found) == naive


def test_one_flag_clears_the_embedded_problems_of_those_that_an_evaluation_set_holds(tmp_path):
    rows = embedded_rows("maths", "train", 60)
    taken = [row["messages"][0]["content"] for row in rows[::10]]
    found = ngrams(tmp_path, [{"question": q, "answer": "#### 1"} for q in taken], 13)
    examples = [
        Example(messages=tuple((m["role"], m["content"]) for m in row["messages"])) for row in rows
    ]
    flags = [overlaps(example, found) for example in examples]
    assert all(flags[::10]) and not all(flags)


def test_an_evaluation_set_without_rows_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"data.decontaminate=.* hold no rows of text"):
        ngrams(tmp_path, [{"question": "a", "answer": "b"}], 13)
