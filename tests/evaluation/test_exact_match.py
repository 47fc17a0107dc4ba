"""Exact match counts what a model that is known says."""

import time
from dataclasses import dataclass

import pytest

from a2d_ray.evaluation.harness.exact_match import exact_match, held_out_tasks
from a2d_ray.generation.decoding.params import SamplingParams

PARAMS = SamplingParams(max_new_tokens=8)


@dataclass
class Answer:
    text: str
    token_ids: list[int]
    num_forwards: int


class Adder:
    """Adds rightly, subtracts wrongly, three tokens in two forwards, and takes a while."""

    def generate(self, prompts, params):
        assert params is PARAMS
        assert all(chat[-1]["role"] == "user" for chat in prompts)
        time.sleep(0.05)
        return [Answer(self.answer(chat[-1]["content"]), [1, 2, 3], 2) for chat in prompts]

    def answer(self, question):
        left, operator, right = question.split()
        return f"  {int(left) + int(right)}\n" if operator == "+" else "no idea"


def task(question: str, answer: str) -> dict:
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": chat}


def test_accuracy_speed_and_examples():
    tasks = [task("1 + 2", "3"), task("5 - 2", "3"), task("2 + 2", "4"), task("2 + 2", "44")]
    result = exact_match(Adder(), tasks, PARAMS)
    assert result.accuracy == 0.5
    assert result.num_tasks == 4
    assert result.tokens_per_forward == 1.5
    assert 0 < result.tokens_per_s <= 12 / 0.05
    assert [e.is_right for e in result.examples] == [True, False, True, False]
    assert result.examples[1].question == "5 - 2"
    assert result.examples[1].expected == "3"
    assert result.examples[1].answer == "no idea"


def test_an_oracle_is_always_right():
    tasks = held_out_tasks("sums", 20)
    answers = {t["messages"][0]["content"]: t["messages"][1]["content"] for t in tasks}

    class Oracle:
        def generate(self, prompts, params):
            return [Answer(answers[chat[0]["content"]], [0], 1) for chat in prompts]

    assert exact_match(Oracle(), tasks, PARAMS).accuracy == 1.0


def test_the_earlier_turns_are_the_prompt():
    seen = []

    class Listener:
        def generate(self, prompts, params):
            seen.extend(prompts)
            return [Answer("x", [0], 1) for _ in prompts]

    long = {"messages": task("a", "b")["messages"] + task("c", "d")["messages"]}
    exact_match(Listener(), [long], PARAMS)
    assert [message["content"] for message in seen[0]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("tasks", "wanted"),
    [([], "at least one"), ([{"messages": [{"role": "user", "content": "a"}]}], "end with")],
)
def test_bad_tasks(tasks, wanted):
    with pytest.raises(ValueError, match=wanted):
        exact_match(Adder(), tasks, PARAMS)


def test_too_many_tasks_are_refused():
    with pytest.raises(ValueError, match="not 100000"):
        held_out_tasks("sums", 100_000)
