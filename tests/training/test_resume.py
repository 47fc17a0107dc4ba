"""A run that is killed, stopped or moved gives the losses of one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from a2d_ray.cli import to_yaml
from a2d_ray.runs.storage import RunDirectory
from a2d_ray.training.stopping import request_stop
from tests.terminal.ours import not_ours
from tests.training.runs import assert_same_losses, fit, metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent
LONG = {
    "optim": {"lr": 1e-3},
    "schedule": {"max_steps": 40, "eval_steps": 20, "save_steps": 10, "eval_samples": 0},
}


@pytest.fixture(scope="module")
def uninterrupted(ray_local, workshop, make_config):
    """Steps and evaluations of a run of one worker that nothing disturbed."""
    fit(make_config("uninterrupted", **LONG))
    return metrics(workshop, "uninterrupted")


def start(config, file: Path, **environ) -> subprocess.Popen:
    """The job, in a process group and with a Ray of its own; its stderr is a file."""
    file.write_text(to_yaml(config))
    clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "jobs/sft_bd3lm.py", str(file)],
        cwd=ROOT,
        env=clean | environ,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=file.with_suffix(".err").open("w"),
        text=True,
    )


def wait_until(condition, *, seconds=200, process=None):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.002)


def num_steps_of(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"loss"') if file.exists() else 0


def test_sigkill_of_everything_during_a_save_then_resume_bit_for_bit(
    uninterrupted, workshop, make_config, tmp_path
):
    run = workshop / "runs" / "killed"
    scratch = Path(tempfile.mkdtemp(dir="/tmp"))  # short: Ray's sockets lie below it
    process = start(make_config("killed", **LONG), tmp_path / "run.yaml", TMPDIR=str(scratch))
    wait_until(
        lambda: num_steps_of(run) >= 20 and any(scratch.glob("a2d-checkpoint-*/*")),
        process=process,
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(scratch, ignore_errors=True)
    assert not (run / "checkpoint_00000030").exists()
    fit(make_config("killed", run={"resume": True}, **LONG))
    steps, evaluations = metrics(workshop, "killed")
    for key in ("step", "loss", "grad_norm", "lr"):
        assert [x[key] for x in steps] == [x[key] for x in uninterrupted[0]], key
    assert [x["eval/nelbo"] for x in evaluations] == [x["eval/nelbo"] for x in uninterrupted[1]]


def test_sigterm_saves_and_the_run_goes_on_with_two_workers_and_then_one(
    uninterrupted, workshop, make_config, tmp_path
):
    run = workshop / "runs" / "moved"
    process = start(make_config("moved", **LONG), tmp_path / "run.yaml")
    wait_until(lambda: num_steps_of(run) >= 3, process=process)
    os.kill(process.pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "run.resume=true" in text
    first = num_steps_of(run)
    assert f"stopped at step {first} of 40" in text
    assert not_ours(text + (tmp_path / "run.err").read_text()) == []
    assert (run / f"checkpoint_{first:08d}" / "model.safetensors").exists()

    def stop_later():
        wait_until(lambda: num_steps_of(run) >= first + 4)
        request_stop(RunDirectory.of(str(run.parent), "moved"))

    threading.Thread(target=stop_later, daemon=True).start()
    moved = LONG | {"run": {"resume": True}}
    result = fit(make_config("moved", scaling={"num_workers": 2}, **moved))
    assert first < result.metrics["step"] < 40
    fit(make_config("moved", **moved))
    steps, _ = metrics(workshop, "moved")
    assert_same_losses(steps, uninterrupted[0], rel=1e-5)


def test_a_killed_worker_is_replaced_and_the_best_is_kept(
    uninterrupted, workshop, make_config, ray_local
):
    run = workshop / "runs" / "replaced"

    def kill_later():
        wait_until(lambda: num_steps_of(run) >= 13)
        for pid in _train_workers():
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill_later, daemon=True).start()
    config = make_config(
        "replaced",
        run={"storage_path": f"file://{workshop}/runs"},
        scaling={"num_workers": [1, 2], "max_failures": 1},
        optim=LONG["optim"],
        schedule=LONG["schedule"] | {"keep_best": True},
    )
    fit(config)
    steps, evaluations = metrics(workshop, "replaced")
    assert_same_losses(steps, uninterrupted[0], rel=1e-5)
    assert [x["step"] for x in evaluations] == [0, 20, 40]
    assert (run / "checkpoint-best" / "model.safetensors").exists()
    assert not (run / "checkpoint-best" / "state").exists()
    assert {p.name for p in run.glob("checkpoint[_-]*") if p.is_dir()} == {
        "checkpoint_00000030",
        "checkpoint-final",
        "checkpoint-best",
    }


def _train_workers() -> list[int]:
    """Training workers below this process's Ray."""
    import psutil

    me = psutil.Process()
    return [p.pid for p in me.children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def test_a_finished_run_is_left_alone_and_another_config_is_refused(
    one_worker, workshop, make_config
):
    from a2d_ray.training import build_trainer

    before = (workshop / "runs" / "one" / "metrics.jsonl").read_bytes()
    trainer = build_trainer(make_config("one", run={"resume": True}))
    outcome = trainer.outcome(trainer.fit())
    assert outcome.exit_code == 0 and "checkpoint-final" in outcome.text
    assert (workshop / "runs" / "one" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match=r"started with optim\.lr=0\.01, not 0\.005"):
        build_trainer(make_config("one", run={"resume": True}, optim={"lr": 5e-3}))
