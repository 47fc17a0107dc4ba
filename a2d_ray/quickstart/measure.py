"""Exact match of a checkpoint, and the figures of a training run."""

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console

from a2d_ray.config import LoadSection
from a2d_ray.evaluation.harness.exact_match import ExactMatch, exact_match, held_out_tasks
from a2d_ray.generation.decoding.params import SamplingParams

NUM_EXAMPLES = 2


def measure_checkpoint(
    load: LoadSection,
    names: Sequence[str],
    num_tasks: int,
    params: SamplingParams,
    console: Console,
) -> dict[str, Any]:
    """Exact match of a checkpoint on held-out tasks, printed as it comes.

    Args:
        load: the checkpoint and how it is loaded.
        names: embedded data sets.
        num_tasks: tasks of each.
        params: how to decode.
        console: where to print.

    Returns:
        Per name: accuracy, tokens_per_forward, tokens_per_s, and a few examples.
    """
    import torch

    from a2d_ray.text.language_model import load as load_model

    torch.set_num_threads(os.cpu_count() or 1)  # nothing else runs now
    lm = load_model(**load.model_dump())
    results = {}
    for name in names:
        score = exact_match(lm, held_out_tasks(name, num_tasks), params)
        _print(name, score, console)
        results[name] = _as_result(score)
    del lm
    gc.collect()  # training needs the memory
    return results


def _as_result(score: ExactMatch) -> dict[str, Any]:
    return {
        "accuracy": score.accuracy,
        "num_tasks": score.num_tasks,
        "tokens_per_forward": score.tokens_per_forward,
        "tokens_per_s": score.tokens_per_s,
        "examples": [vars(example) for example in score.examples[:NUM_EXAMPLES]],
    }


def _print(name: str, score: ExactMatch, console: Console) -> None:
    example = score.examples[0]
    console.print(
        f"  {name}: {score.accuracy:.0%} of {score.num_tasks} right, "
        f"{score.tokens_per_forward:.2f} tokens per forward, {score.tokens_per_s:.0f} tokens/s; "
        f"{example.question!r} -> {example.answer!r} (right: {example.expected!r})",
        markup=False,
        highlight=False,
    )


def run_figures(run_directory: Path) -> dict[str, Any]:
    """What a finished training run says about itself in ``metrics.jsonl``.

    Returns:
        steps; loss_before and loss_after (means over the first and last tenth of the steps, nats
        per target token); nelbo_before and nelbo_after (held out, nats per token; None if the run
        evaluated nothing); tokens_per_s and target_tokens_per_s (medians over the steps).
    """
    lines = [json.loads(x) for x in (run_directory / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}  # a redone step counts once
    nelbos = {line["step"]: line["eval/nelbo"] for line in lines if "eval/nelbo" in line}
    ordered = [steps[step] for step in sorted(steps)]
    tenth = max(1, len(ordered) // 10)
    return {
        "steps": len(ordered),
        "loss_before": mean(line["loss"] for line in ordered[:tenth]),
        "loss_after": mean(line["loss"] for line in ordered[-tenth:]),
        "nelbo_before": nelbos[min(nelbos)] if nelbos else None,
        "nelbo_after": nelbos[max(nelbos)] if nelbos else None,
        "tokens_per_s": median(line["tokens_per_s"] for line in ordered),
        "target_tokens_per_s": median(line["target_tokens_per_s"] for line in ordered),
    }
