"""A sweep of six short trials: killed once, restored, with one trial that fails."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from a2d_ray.cli import parse_config, to_yaml
from a2d_ray.config import SweepConfig, TrainConfig

pytestmark = [pytest.mark.own_cluster, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def swept(workshop, make_config, tmp_path_factory):
    """The sweep's directory, what the command printed, and trials that had finished at the kill."""
    root = tmp_path_factory.mktemp("sweep")
    train = make_config(
        "base", schedule={"max_steps": None, "epochs": 0.2, "eval_steps": 0.5, "eval_samples": 0}
    )
    values = {
        "sweep": {
            "name": "tiny", "storage_path": str(root), "num_trials": 6, "search": "optuna",
            "scheduler": "asha", "grace": 0.5, "reduction": 2, "seed": 1, "max_concurrent": 2,
        },
        "space": {
            "optim.lr": {"loguniform": [1e-4, 3e-2]},
            # 4,000 rows are more than there are: what only the data can say fails in the trial.
            "batch.rows": {"choice": [4, 4, 4, 4000]},
        },
        "train": json.loads(train.model_dump_json()),
    }  # fmt: skip
    config = SweepConfig.model_validate(values)
    file = root / "sweep.yaml"
    file.write_text(to_yaml(config))
    first = start(file, log=root / "first.log")
    directory = root / "tiny"
    wait_for(lambda: len(finished(directory)) >= 2, first, root / "first.log")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.read_bytes() for path in finished(directory)}
    again = start(file, "sweep.resume=true", log=root / "again.log")
    try:
        assert again.wait(timeout=450) == 0, (root / "again.log").read_text()[-4000:]
    finally:
        if again.poll() is None:
            os.killpg(again.pid, signal.SIGKILL)
    output = (root / "again.log").read_text()
    return directory, output, before


def start(file, *args, log):
    """The job in a process group of its own, so that its Ray dies with it."""
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "jobs/sweep.py", str(file), *args],
        cwd=ROOT,
        env=environ | {"TUNE_GLOBAL_CHECKPOINT_S": "1"},
        start_new_session=True,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


def wait_for(condition, process, log):
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finished(directory):
    """Metrics files of runs that have their last checkpoint."""
    return [
        p.parent.parent / "metrics.jsonl" for p in directory.glob("trials/*/checkpoint-final/state")
    ]


def table(directory):
    with (directory / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_trial_has_its_line_and_the_failed_one_its_reason(swept):
    rows = table(swept[0])
    assert len(rows) == len({row["trial"] for row in rows}) == 6
    for row in rows:
        is_too_large = "batch.rows=4000 exceeds" in row["error"]
        assert (row["status"] == "failed") == is_too_large
        # Also of a trial that had failed before the kill, whose point Ray forgets.
        assert row["batch.rows"] == ("4000" if is_too_large else "4")
        assert 1e-4 <= float(row["optim.lr"]) <= 3e-2
    assert sum(row["status"] == "finished" for row in rows) >= 2


def test_finished_trials_are_not_trained_again(swept):
    before = swept[2]
    assert len(before) >= 2
    assert {path: path.read_bytes() for path in before} == before


def test_trials_share_one_packed_set(swept, workshop):
    plans = [json.loads(p.read_text()) for p in swept[0].glob("trials/*/plan.json")]
    assert len({plan["packed_path"] for plan in plans}) == 1


def test_rows_say_what_the_runs_measured(swept):
    directory, output, _ = swept
    for row in table(directory):
        run = directory / "trials" / f"trial-{row['trial']}"
        if row["status"] == "failed":
            continue
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        nelbos = [line["eval/nelbo"] for line in lines if "eval/nelbo" in line]
        assert float(row["nelbo"]) in nelbos
        assert row["trial"] in output


def test_the_best_configuration_is_one_that_the_training_job_takes(swept):
    directory, output, _ = swept
    assert f"best: {directory / 'best.yaml'}" in output
    best = parse_config(TrainConfig, "sft_bd3lm", [str(directory / "best.yaml")])
    done = [row for row in table(directory) if row["status"] == "finished"]
    assert best.optim.lr == float(min(done, key=lambda row: float(row["nelbo"]))["optim.lr"])
    assert best.run.name == "tiny-best" and best.schedule.save_steps == 3
    for name in ("parallel.png", "nelbo-lr.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")


def test_another_sweep_of_the_name_is_refused(swept):
    directory = swept[0]
    for args, message in (
        ([], "sweep.resume=true"),
        (["sweep.resume=true", "sweep.num_trials=7"], "was started with sweep.num_trials=6, not 7"),
    ):
        file = directory.parent / "sweep.yaml"
        done = subprocess.run(
            [sys.executable, "jobs/sweep.py", str(file), *args],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2 and message in done.stderr
