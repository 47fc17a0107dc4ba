"""`ray job submit`: the same job files, unchanged, on a cluster that `ray start --head` made."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from a2d_ray import convert
from tests.tiny import save_tiny_ar

pytestmark = [pytest.mark.own_cluster, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A head node with its job server; yields the server's address. Only it is stopped."""
    dashboard = free_port()
    bin_directory = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}"}
    environ.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [
            bin_directory / "ray", "start", "--head", "--block", f"--port={free_port()}",
            "--num-cpus=4", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environ,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(f"{address}/api/version", head)
        yield address, environ
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def _wait_until_up(url: str, process: subprocess.Popen) -> None:
    deadline = time.time() + 180
    while True:
        assert process.poll() is None, "ray start failed"
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            assert time.time() < deadline
            time.sleep(0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A converted tiny model and rows to train on."""
    root = tmp_path_factory.mktemp("submitted")
    convert(str(save_tiny_ar(root / "ar")), root / "a2d")
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(200)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def ray_job(cluster, *args) -> subprocess.CompletedProcess:
    """`ray job ARGS` against the cluster."""
    address, environ = cluster
    command, *rest = args
    return subprocess.run(
        [shutil.which("ray", path=environ["PATH"]), "job", command, "--address", address, *rest],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def training(files, name, *args):
    """The training job's command."""
    return [
        "python", "jobs/sft_bd3lm.py", f"run.name={name}", f"run.storage_path={files / 'runs'}",
        f"model.path={files / 'a2d'}", f"data.spec={files / 'rows.jsonl'}",
        f"data.packed_path={files / 'packed'}", "scaling.num_workers=2", *args,
    ]  # fmt: skip


def test_training_job_on_a_started_cluster(cluster, files):
    command = training(files, "submitted", "schedule.max_steps=2", "schedule.save_steps=0")
    done = ray_job(cluster, "submit", "--working-dir", ".", "--", *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    assert (files / "runs" / "submitted" / "checkpoint-final" / "model.safetensors").exists()


def test_a_stopped_job_leaves_a_run_that_goes_on(cluster, files):
    from a2d_ray.runs.status import run_status

    def submit(steps, *args):
        command = training(files, "stopped", "schedule.save_steps=2", f"schedule.max_steps={steps}")
        return ray_job(cluster, "submit", *args, "--working-dir", ".", "--", *command,
                       "schedule.eval_steps=0", "run.resume=true")  # fmt: skip

    steps = 400  # more than it gets to
    assert submit(steps, "--no-wait", "--submission-id", "first").returncode == 0
    deadline = time.monotonic() + 120
    while not list((files / "runs").glob("stopped/checkpoint_*/state/progress.json")):
        assert time.monotonic() < deadline, ray_job(cluster, "logs", "first").stdout[-3000:]
        time.sleep(0.1)
    assert ray_job(cluster, "stop", "first").returncode == 0
    assert "was stopped" in ray_job(cluster, "status", "first").stdout
    before = run_status(str(files / "runs"), "stopped")
    assert 2 <= before.checkpoint_step <= before.step < steps

    assert submit(steps, "--no-wait", "--submission-id", "second").returncode == 0
    while run_status(str(files / "runs"), "stopped").checkpoint_step <= before.step + 2:
        assert time.monotonic() < deadline + 120, ray_job(cluster, "logs", "second").stdout[-3000:]
        time.sleep(0.1)
    assert ray_job(cluster, "stop", "second").returncode == 0
    lines = map(json.loads, (files / "runs" / "stopped" / "metrics.jsonl").read_text().splitlines())
    numbers = [line["step"] for line in lines]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > before.step


def test_jobs_without_workers_are_submitted_alike(cluster, files):
    for job in (
        ["jobs/status.py", f"storage_path={files / 'runs'}"],
        ["jobs/prepare_data.py", f"model.path={files / 'a2d'}", f"data.spec={files / 'rows.jsonl'}",
         f"data.packed_path={files / 'packed'}"],
        ["cluster/with_gpus.py", "0", "python", "jobs/plan.py"],
    ):  # fmt: skip
        done = ray_job(cluster, "submit", "--working-dir", ".", "--", "python", *job)
        assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout[-3000:]
