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

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
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
            head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def _wait_until_up(url: str, process: subprocess.Popen) -> None:
    deadline = time.time() + 60
    while True:
        assert process.poll() is None, "ray start failed"
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            assert time.time() < deadline
            time.sleep(0.5)


def test_training_job_on_a_started_cluster(cluster, tmp_path):
    address, environ = cluster
    convert(str(save_tiny_ar(tmp_path / "ar")), tmp_path / "a2d")
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [
            shutil.which("ray", path=environ["PATH"]), "job", "submit", "--address", address,
            "--working-dir", ".", "--", "python", "jobs/sft_bd3lm.py",
            "run.name=submitted", f"run.storage_path={tmp_path / 'runs'}",
            f"model.path={tmp_path / 'a2d'}", f"data.spec={tmp_path / 'rows.jsonl'}",
            f"data.packed_path={tmp_path / 'packed'}", "schedule.max_steps=2",
            "schedule.save_steps=0", "scaling.num_workers=2",
        ],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    assert (tmp_path / "runs" / "submitted" / "checkpoint-final" / "model.safetensors").exists()
