"""A run that is killed and started again gives the losses of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from a2d_ray.cli import to_yaml
from tests.training.runs import assert_same_losses, metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent


def start(config, file: Path) -> subprocess.Popen:
    file.write_text(to_yaml(config))
    return subprocess.Popen(
        [sys.executable, "jobs/sft_bd3lm.py", str(file)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_sigkill_of_everything_then_resume_with_other_workers(
    one_worker,
    workshop,
    make_config,
    tmp_path,
):
    run = workshop / "runs" / "killed"
    process = start(make_config("killed"), tmp_path / "config.yaml")
    deadline = time.time() + 200
    while "checkpoint_00000003" not in _snapshot(run):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = make_config("killed", run={"resume": True}, scaling={"num_workers": 2})
    process = start(resumed, tmp_path / "again.yaml")
    assert process.wait(timeout=300) == 0
    steps, evaluations = metrics(workshop, "killed")
    assert_same_losses(steps, one_worker[1], rel=1e-4)
    assert [x["step"] for x in evaluations] == [0, 3, 6]


def test_a_finished_run_is_left_alone_and_another_config_is_refused(
    one_worker,
    workshop,
    make_config,
):
    from a2d_ray.training import build_trainer

    before = (workshop / "runs" / "one" / "metrics.jsonl").read_bytes()
    result = build_trainer(make_config("one", run={"resume": True})).fit()
    assert result.checkpoint.path.endswith("checkpoint-final")
    assert (workshop / "runs" / "one" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match=r"started with optim"):
        build_trainer(make_config("one", run={"resume": True}, optim={"lr": 5e-3}))


def _snapshot(run: Path) -> str:
    file = run / "checkpoint_manager_snapshot.json"
    return file.read_text() if file.exists() else ""
