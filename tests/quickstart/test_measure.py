"""The figures of a run are read from its metrics."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from a2d_ray.quickstart import recipe
from a2d_ray.quickstart.measure import run_figures
from a2d_ray.quickstart.report import print_report
from a2d_ray.quickstart.stages import Record


def step(number, loss):
    return {"step": number, "loss": loss, "tokens_per_s": 100 + number, "target_tokens_per_s": 10}


def write(folder: Path, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_first_and_last_tenth_and_both_nelbos(tmp_path):
    steps = [step(n, 21.0 - n) for n in range(1, 21)]
    write(
        tmp_path,
        [
            {"step": 0, "eval/nelbo": 8.0},
            *steps,
            {"step": 20, "eval/nelbo": 2.0, "eval/accepted_length": 2.5},
        ],
    )
    assert run_figures(tmp_path) == {
        "steps": 20,
        "loss_before": 19.5,
        "loss_after": 1.5,
        "nelbo_before": 8.0,
        "nelbo_after": 2.0,
        "accepted_length": 2.5,
        "tokens_per_s": 110.5,
        "target_tokens_per_s": 10,
    }


def test_a_step_that_was_redone_after_a_restart_counts_once(tmp_path):
    write(tmp_path, [step(1, 4.0), step(2, 9.0), step(2, 2.0)])
    figures = run_figures(tmp_path)
    assert (figures["steps"], figures["loss_after"]) == (2, 2.0)
    assert figures["nelbo_before"] is None


def score(accuracy):
    figures = {"tokens_per_forward": 1.5, "tokens_per_s": 31.0, "equal": 0.75}
    return {"accuracy": accuracy, "num_tasks": 40, **figures}


def record(result):
    return Record(inputs={}, result=result, seconds=61.0)


@pytest.fixture
def records(tmp_path):
    write(tmp_path, [{"step": 0, "eval/nelbo": 8.0}, step(1, 4.0), {"step": 1, "eval/nelbo": 7.0}])
    return {
        "prepare": record({"documents": 12_000, "rows": 2_000, "utilisation": 0.987}),
        "own answers": record({"rows": 70, "held_out": ["a", "b", "c"]}),
        "before": record({"tasks": {"sorting": {"ar": score(0.0)}}, "same": 3}),
        "train": record(run_figures(tmp_path)),
        "after": record(
            {"tasks": {"sorting": {rule: score(0.55) for rule in recipe.MEASURED_RULES}}, "same": 2}
        ),
    }


def test_the_table_says_it_all(records, tmp_path):
    text = io.StringIO()
    files = {"checkpoint": tmp_path / "checkpoint-final"}
    print_report(records, files, Console(file=text, width=120))
    table = text.getvalue()
    for wanted in (
        *("8.00 -> 7.00", "55%", "75%", "98.7%", "12,000", "1.50", "31", "2 of 3", "305"),
        *("AR original", "AR mode", "speculate", "threshold", "checkpoint-final"),
    ):
        assert wanted in table
