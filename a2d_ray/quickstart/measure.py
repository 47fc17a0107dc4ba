"""What a checkpoint answers, rule by rule, and the figures of a training run."""

import gc
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console

from a2d_ray.config import LoadSection
from a2d_ray.evaluation.harness.exact_match import held_out_tasks
from a2d_ray.generation.decoding.params import SamplingParams


def measure_checkpoint(
    load: LoadSection,
    names: Sequence[str],
    num_tasks: int,
    rules: Mapping[str, SamplingParams],
    console: Console,
) -> dict[str, Any]:
    """Held-out tasks, answered one at a time by each rule in turn; printed as it comes.

    Args:
        load: the checkpoint and how it is loaded.
        names: embedded data sets.
        num_tasks: tasks of each.
        rules: how to decode, by rule; the first one's answers are what others are compared with.
        console: where to print.

    Returns:
        Per name and rule: num_tasks, accuracy, equal (share of answers equal to the first rule's),
        tokens_per_forward, tokens_per_s (end of turn included), and an example.
    """
    lm = load_alone(load)
    results: dict[str, Any] = {}
    for name in names:
        warm_up, *tasks = held_out_tasks(name, num_tasks + 1)
        for params in rules.values():
            lm.generate([warm_up["messages"][:-1]], params)
        results[name] = _by_rule(lm, tasks, rules)
        for rule, figures in results[name].items():
            line = f"  {name}, rule {rule}: {_in_words(figures)}"
            console.print(line, markup=False, soft_wrap=True)
    del lm
    gc.collect()  # training needs the memory
    return results


def answer_questions(
    load: LoadSection, questions: Sequence[str], params: SamplingParams
) -> list[tuple[str, bool]]:
    """The answer to each question, and whether it ended by itself."""
    lm = load_alone(load)
    chats = [[{"role": "user", "content": question}] for question in questions]
    answers = lm.generate(chats, params)
    del lm
    gc.collect()
    return [(answer.text, answer.finish_reason == "stop") for answer in answers]


def load_alone(load: LoadSection) -> Any:
    """The language model, with all cores: nothing else runs now."""
    import torch

    from a2d_ray.text.language_model import load as load_model

    torch.set_num_threads(os.cpu_count() or 1)
    return load_model(**load.model_dump())


def _by_rule(
    lm: Any, tasks: Sequence[dict[str, Any]], rules: Mapping[str, SamplingParams]
) -> dict[str, Any]:
    answers: dict[str, list[Any]] = {rule: [] for rule in rules}
    seconds = dict.fromkeys(rules, 0.0)
    for task in tasks:
        for rule, params in rules.items():
            started = time.perf_counter()
            answers[rule] += lm.generate([task["messages"][:-1]], params)
            seconds[rule] += time.perf_counter() - started
    first = next(iter(answers.values()))
    expected = [task["messages"][-1]["content"].strip() for task in tasks]
    results = {}
    for rule, given in answers.items():
        num_tokens = sum(len(a.token_ids) + (a.finish_reason == "stop") for a in given)
        texts = [answer.text.strip() for answer in given]
        results[rule] = {
            "num_tasks": len(tasks),
            "accuracy": mean(a == b for a, b in zip(texts, expected, strict=True)),
            "equal": mean(a.token_ids == b.token_ids for a, b in zip(given, first, strict=True)),
            "tokens_per_forward": num_tokens / sum(answer.num_forwards for answer in given),
            "tokens_per_s": num_tokens / seconds[rule],
            "example": {
                "question": tasks[0]["messages"][-2]["content"],
                "answer": texts[0],
                "expected": expected[0],
            },
        }
    return results


def _in_words(figures: Mapping[str, Any]) -> str:
    example = figures["example"]
    return (
        f"{figures['accuracy']:.0%} of {figures['num_tasks']} right, "
        f"{figures['tokens_per_forward']:.2f} tokens per forward, "
        f"{figures['tokens_per_s']:.0f} tokens/s; "
        f"{example['question']!r} -> {example['answer']!r} (right: {example['expected']!r})"
    )


def run_figures(run_directory: Path) -> dict[str, Any]:
    """What a finished training run says about itself in ``metrics.jsonl``.

    Returns:
        steps; loss_before and loss_after (means over the first and last tenth of the steps, nats
        per target token); nelbo_before and nelbo_after (held out, nats per token; None if the run
        evaluated nothing); accepted_length (held out, tokens; None likewise); tokens_per_s and
        target_tokens_per_s (medians over the steps).
    """
    lines = [json.loads(x) for x in (run_directory / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}  # a redone step counts once
    nelbos = {line["step"]: line["eval/nelbo"] for line in lines if "eval/nelbo" in line}
    accepted = [line["eval/accepted_length"] for line in lines if "eval/accepted_length" in line]
    ordered = [steps[step] for step in sorted(steps)]
    tenth = max(1, len(ordered) // 10)
    return {
        "steps": len(ordered),
        "loss_before": mean(line["loss"] for line in ordered[:tenth]),
        "loss_after": mean(line["loss"] for line in ordered[-tenth:]),
        "nelbo_before": nelbos[min(nelbos)] if nelbos else None,
        "nelbo_after": nelbos[max(nelbos)] if nelbos else None,
        "accepted_length": accepted[-1] if accepted else None,
        "tokens_per_s": median(line["tokens_per_s"] for line in ordered),
        "target_tokens_per_s": median(line["target_tokens_per_s"] for line in ordered),
    }
