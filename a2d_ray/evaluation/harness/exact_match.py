"""Exact match on held-out tasks that have one right answer."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from a2d_ray.data.sources.embedded import embedded_rows
from a2d_ray.generation.decoding.params import SamplingParams


class HasTokenIds(Protocol):
    """What is read of one answer."""

    token_ids: Sequence[int]
    text: str
    num_forwards: int


class Generator(Protocol):
    """Anything that answers chats, such as `a2d_ray.load`'s language model."""

    def generate(self, prompts: Any, params: SamplingParams) -> Sequence[Any]:
        """One `HasTokenIds` per chat, in the same order."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task with its answer."""

    question: str
    expected: str
    answer: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected text, spaces around it aside."""
        return self.answer.strip() == self.expected.strip()


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """The score of a model on a set of tasks.

    Attributes:
        accuracy: share of the tasks whose answer is exactly right, 0 to 1.
        num_tasks: number of tasks.
        tokens_per_forward: answer tokens per denoising forward of one request.
        tokens_per_s: answer tokens per second of wall time, prompts included.
        examples: every task with its answer, in order.
    """

    accuracy: float
    num_tasks: int
    tokens_per_forward: float
    tokens_per_s: float
    examples: tuple[Task, ...]


def held_out_tasks(name: str, num_tasks: int) -> list[dict[str, Any]]:
    """The first `num_tasks` held-out rows of an embedded data set (`embedded_rows`).

    Raises:
        ValueError: there are fewer than `num_tasks`.
    """
    tasks = embedded_rows(name, "test", num_tasks)
    if len(tasks) < num_tasks:
        raise ValueError(f"embedded/{name} holds {len(tasks)} held-out tasks, not {num_tasks}")
    return tasks


def exact_match(
    lm: Generator, tasks: Sequence[dict[str, Any]], params: SamplingParams
) -> ExactMatch:
    """The share of tasks that `lm` answers exactly right.

    Args:
        lm: the language model.
        tasks: rows ``{"messages": [...]}`` that end with the expected answer; all before it is
            the prompt.
        params: how to decode; the answers must fit into ``max_new_tokens``.

    Returns:
        Accuracy, speed and every answer.

    Raises:
        ValueError: no tasks, or a row that does not end with an assistant's message.
    """
    if not tasks:
        raise ValueError("exact_match needs at least one task")
    if any(task["messages"][-1]["role"] != "assistant" for task in tasks):
        raise ValueError("each task must end with the assistant's expected answer")
    prompts = [task["messages"][:-1] for task in tasks]
    start = time.perf_counter()
    answers = lm.generate(prompts, params)
    seconds = time.perf_counter() - start
    examples = tuple(
        Task(
            question=task["messages"][-2]["content"],
            expected=task["messages"][-1]["content"],
            answer=answer.text,
        )
        for task, answer in zip(tasks, answers, strict=True)
    )
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    num_forwards = sum(answer.num_forwards for answer in answers)
    return ExactMatch(
        accuracy=sum(example.is_right for example in examples) / len(examples),
        num_tasks=len(examples),
        tokens_per_forward=num_tokens / max(num_forwards, 1),
        tokens_per_s=num_tokens / seconds,
        examples=examples,
    )
