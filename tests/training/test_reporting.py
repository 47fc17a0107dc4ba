"""Metrics files of interrupted and resumed runs."""

import json
from itertools import pairwise
from typing import get_args

import pyarrow.fs as pafs
import pytest

from a2d_ray.runs.storage import RunDirectory
from a2d_ray.training.optim import SHAPES, corruption_limit, learning_rate
from a2d_ray.training.progress import progress_bar
from a2d_ray.training.reporting import MetricsLog


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_drops_what_the_checkpoint_does_not_know(tmp_path):
    log = MetricsLog(RunDirectory.of(str(tmp_path.parent), tmp_path.name), 0)
    for step in range(1, 6):
        log.write({"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    resumed = MetricsLog(RunDirectory.of(str(tmp_path.parent), tmp_path.name), 3)
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3]
    drafts = {"eval/accepted_length": 2.0} | {f"eval/draft_agreement_{j}": 0.5 for j in range(1, 9)}
    resumed.write({"step": 4, "loss": 0.0, "eval/nelbo": 1.0} | drafts)
    resumed.flush()
    resumed.plot()
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3, 4]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_elsewhere_than_on_a_disk_is_written_whole(tmp_path):
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    log = MetricsLog(RunDirectory(store, "run"), 0)
    log.write({"step": 1, "loss": 2.0})
    assert lines(tmp_path / "run") == [] and log.directory.local_path is None
    log.flush()
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 2.0}]


def test_progress_bar_follows_the_file(tmp_path, capsys):
    with progress_bar(RunDirectory.of(str(tmp_path.parent), tmp_path.name), 3, "mine"):
        log = MetricsLog(RunDirectory.of(str(tmp_path.parent), tmp_path.name), 0)
        log.write({"step": 0, "eval/nelbo": 7.25})
        for step in (1, 2, 3):
            log.write({"step": step, "loss": 1.5, "tokens_per_s": 80.0})
    shown = capsys.readouterr().err
    assert "mine: 3 of 3 steps, nelbo 7.250, loss 1.500" in shown  # in a pipe


def test_every_schedule_of_the_configuration_has_a_shape():
    from a2d_ray.config import OptimSection

    assert set(SHAPES) == set(get_args(OptimSection.model_fields["schedule"].annotation))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_warms_up_and_ends_at_its_floor(schedule):
    from a2d_ray.config import OptimSection

    optim = OptimSection(lr=2.0, warmup=0.1, schedule=schedule, min_lr_fraction=0.1)
    rates = [learning_rate(step, 100, optim) for step in range(101)]
    assert rates[:10] == pytest.approx([2.0 * (i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 2.0
    assert rates[100] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[10:]))


def test_wsd_is_constant_until_its_decay():
    from a2d_ray.config import OptimSection

    optim = OptimSection(lr=1.0, warmup=0.1, schedule="wsd", decay=0.2, min_lr_fraction=0.0)
    rates = [learning_rate(step, 100, optim) for step in range(101)]
    assert rates[9:81] == [1.0] * 72
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(21)])


def test_corruption_limit_rises_to_one():
    limits = [corruption_limit(step, 100, 0.04) for step in range(10)]
    assert limits[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and limits[5:] == [1.0] * 5
    assert corruption_limit(0, 100, 0.0) == 1.0


@pytest.mark.parametrize(
    ("every", "num_steps", "expected"),
    [(0.5, 109, [55, 109]), (0.1, 20, list(range(2, 21, 2))), (3, 10, [3, 6, 9, 10]), (0, 5, [5])],
)
def test_shares_and_counts_of_steps(every, num_steps, expected):
    from a2d_ray.training.plan import is_due

    assert [s for s in range(1, num_steps + 1) if is_due(s, every, num_steps)] == expected


def test_a_resumed_run_is_the_same_wandb_run(tmp_path):
    from a2d_ray.config import TrainConfig
    from a2d_ray.training.gauges import RunGauges
    from a2d_ray.training.reporting import RunReporter
    from a2d_ray.training.samples import HeldOutSample

    config = TrainConfig.model_validate(
        {
            "run": {"name": "mine", "storage_path": str(tmp_path)},
            "model": {"path": "model"},
            "data": {"spec": "rows.jsonl"},
            "objective": {"name": "bd3lm"},
            "wandb": {"mode": "offline"},
        }
    )
    directory = RunDirectory.of(str(tmp_path), "mine")
    for start in (0, 2):
        log = MetricsLog(directory, start)
        reporter = RunReporter(config, log, RunGauges("mine", 4))
        for step in (start + 1, start + 2):
            reporter.step({"step": step, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1})
        line = {"step": start + 2, "eval/nelbo": 1.0}
        reporter.evaluation(line, [HeldOutSample("say 1", "one", f"answer {start}")])
        reporter.close()
    ids = [path.name.split("-")[3] for path in (tmp_path / "mine/wandb").glob("offline-run-*")]
    assert ids == ["mine"] * len(ids) and ids
    assert [x["step"] for x in lines(tmp_path / "mine")] == [1, 2, 2, 3, 4, 4]
    samples = (tmp_path / "mine/samples.jsonl").read_text()
    assert samples.count("\n") == 2 and "answer 0" in samples and "answer 2" in samples
