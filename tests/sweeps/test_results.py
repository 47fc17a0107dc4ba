"""Rows, files and plots of finished sweeps."""

import csv
import json
from dataclasses import replace

import pytest
import yaml
from matplotlib.figure import Figure
from ray.tune import Result

from a2d_ray.cli import parse_config
from a2d_ray.config import SweepConfig, TrainConfig
from a2d_ray.sweeps.plots import draw_nelbo_by_lr, draw_parallel, write_plots
from a2d_ray.sweeps.points import TrialRow, read_point, write_point
from a2d_ray.sweeps.results import SweepResults, format_results, sort_rows
from a2d_ray.sweeps.results import _row as row_of
from a2d_ray.sweeps.results import _write_best as write_best
from a2d_ray.sweeps.results import _write_csv as write_csv

LRS = (1e-5, 3e-5, 1e-4, 3e-4)


def rows():
    """Two block sizes, four rates each; one stopped, one failed, one that diverged."""
    made = [
        TrialRow(
            trial=f"b{block}-{i}", status="finished", percent=100.0, block_size=block,
            nelbo=3.0 + block / 10 + abs(i - 2) / 4, exact_match=0.1 * i + block / 100,
            accepted_length=1 + 0.5 * i + block / 100,
            point={"optim.lr": lr, "objective.block_size": block},
        )
        for block in (8, 4) for i, lr in enumerate(LRS)
    ]  # fmt: skip
    made[3] = replace(made[3], status="stopped", percent=33.0, nelbo=3.0)
    made[4] = replace(made[4], status="failed", percent=25.0, nelbo=None, error="ValueError: no")
    made[5] = replace(made[5], nelbo=float("nan"))
    return made


def config(*args):
    space = {"optim.lr": {"loguniform": [1e-5, 3e-4]}, "objective.block_size": {"choice": [4, 8]}}
    space = f"space={json.dumps(space)}"
    free = ("sweep.search=random", "sweep.scheduler=none", space)
    return parse_config(SweepConfig, "sweep", [*free, *args])


def test_nelbo_orders_within_a_block_size():
    ordered = sort_rows(rows(), config())
    assert [row.trial for row in ordered] == [
        "b4-2", "b4-3", "b8-2", "b8-1", "b8-0", "b8-3", "b4-1", "b4-0",
    ]  # fmt: skip


def test_answers_order_across_block_sizes():
    by_answers = config("sweep.metric=exact_match", "sweep.exact_match_tasks=8")
    ordered = sort_rows(rows(), by_answers)
    assert [row.trial for row in ordered][:3] == ["b4-3", "b8-2", "b4-2"]
    assert ordered[-1].status == "failed"


def test_accepted_length_is_the_larger_the_better_across_block_sizes():
    causal = ("sweep.metric=accepted_length", "train.objective.clean_attention=causal")
    ordered = sort_rows(rows(), config(*causal))
    assert [row.trial for row in ordered][:3] == ["b4-3", "b8-2", "b4-2"]


@pytest.mark.parametrize("args", [[], ["sweep.metric=exact_match", "sweep.exact_match_tasks=8"]])
def test_best_configurations_are_runs_of_the_training_job(tmp_path, args):
    sweep = config(*args)
    best = write_best(sort_rows(rows(), sweep), sweep, tmp_path)
    names = {"best.yaml"} if args else {"best-block-4.yaml", "best-block-8.yaml"}
    assert {path.name for path in best.values()} == names
    for path in best.values():
        run = parse_config(TrainConfig, "sft_bd3lm", [str(path)])
        assert run.run.name.startswith("sweep-best") and not run.run.resume
        assert run.run.storage_path == sweep.train.run.storage_path
        assert run.schedule == sweep.train.schedule
    if not args:
        values = yaml.safe_load(best["block-4"].read_text())
        assert values["optim"]["lr"] == 1e-4 and values["objective"]["block_size"] == 4


def test_csv_holds_every_trial(tmp_path):
    write_csv(rows(), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["trial"] for row in read] == [row.trial for row in rows()]
    assert float(read[0]["optim.lr"]) == 1e-5 and read[4]["error"] == "ValueError: no"


def test_table_shows_trials_errors_and_best(tmp_path):
    ordered = sort_rows(rows(), config())
    best = write_best(ordered, config(), tmp_path)
    text = format_results(SweepResults(rows=ordered, best=best, directory=tmp_path), "nelbo")
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["trial", "status", "done", "nelbo"]
    assert "b4-0: ValueError: no" in lines and "within one block size" in text
    assert "best block-4" in text and "33%" in text


def test_plots_show_every_trial_with_a_result(tmp_path):
    shown = [row for row in rows() if row.nelbo is not None and row.nelbo == row.nelbo]
    axes = Figure().subplots()
    draw_parallel(axes, shown, "nelbo")
    assert len([line for line in axes.lines if len(line.get_xdata()) == 3]) == len(shown)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["optim.lr", "objective.block_size", "nelbo"]
    axes = Figure().subplots()
    draw_nelbo_by_lr(axes, shown)
    points = sorted(map(tuple, (p for c in axes.collections for p in c.get_offsets().tolist())))
    assert points == sorted((row.point["optim.lr"], row.nelbo) for row in shown)
    write_plots(rows(), "nelbo", tmp_path)
    for name in ("parallel.png", "nelbo-lr.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    write_plots([rows()[4]], "nelbo", tmp_path / "nothing")  # only a failed trial: no plots
    assert not (tmp_path / "nothing").exists()


def test_a_point_that_ray_forgot_is_that_of_the_run(tmp_path):
    point = {"optim.lr": 3e-4, "objective.block_size": 8}
    write_point(point, tmp_path / "trials" / "trial-1a2b3c4d")
    failed = Result(
        metrics={"trial_id": "1a2b3c4d"},  # all that a restored trial has that failed before
        checkpoint=None,
        error=ValueError("no"),
        path=str(tmp_path / "tune" / "run_trial_1a2b3c4d_3_lr=0.0003"),
    )
    row = row_of(failed, config(), tmp_path)
    assert (row.status, row.error, row.trial) == ("failed", "no", "1a2b3c4d")
    assert row.point == point and row.block_size == 8
    never = replace(failed, metrics={"trial_id": "ffff0000"})
    assert row_of(never, config(), tmp_path).point == {}
    reported = replace(failed, metrics={"trial_id": "1a2b3c4d", "config": {"optim.lr": 1.0}})
    assert row_of(reported, config(), tmp_path).point == {"optim.lr": 1.0}


def test_a_driver_killed_while_it_notes_a_point_leaves_none(tmp_path):
    (tmp_path / ".point.json").write_text('{"optim.lr": 0.')
    assert read_point(tmp_path) == {}
