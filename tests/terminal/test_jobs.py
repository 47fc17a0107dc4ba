"""Whole jobs show lines of ours and nothing else: in a terminal, in a pipe, and on Ctrl-C."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from a2d_ray import convert
from tests.commands import ROOT
from tests.terminal.ours import not_ours
from tests.terminal.pty_command import CTRL_C, InTerminal
from tests.tiny import save_tiny_ar

pytestmark = [pytest.mark.own_cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A converted tiny model, rows, and a place for logs."""
    root = tmp_path_factory.mktemp("shown")
    convert(str(save_tiny_ar(root / "ar")), root / "a2d")
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(40)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture
def environ(files):
    """Of a user's shell: no Ray of the tests, logs apart."""
    ours = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return ours | {"A2D_LOG_DIR": str(files / "logs")}


def training(files, name, *args):
    return [
        sys.executable, "jobs/sft_bd3lm.py", f"run.name={name}",
        f"run.storage_path={files / 'runs'}", f"model.path={files / 'a2d'}",
        f"data.spec={files / 'rows.jsonl'}", f"data.packed_path={files / 'packed'}",
        "data.max_length=64", "data.tokens_per_row=192", "batch.rows=2", "scaling.num_workers=1",
        "schedule.eval_steps=0", "schedule.save_steps=0", *args,
    ]  # fmt: skip


def log_of(text):
    path = re.search(r"^log: (\S+)", text, re.M)[1]
    return open(path).read()


@pytest.mark.slow
def test_training_in_a_terminal_until_ctrl_c(files, environ):
    job = InTerminal(training(files, "terminal", "schedule.max_steps=100000"), ROOT, environ)
    job.wait_for("loss=")
    job.type(CTRL_C)
    assert job.end() == 75, job.text
    assert not_ours(job.text) == []
    for words in ("packed in", "100000 [", "Ctrl-C again", "run.resume=true", "checkpoint_"):
        assert words in job.text, job.text
    assert "TrainController" in log_of(job.text.replace("\r", ""))  # what is not shown is there


@pytest.mark.slow
def test_serving_in_a_pipe_until_ctrl_c(files, environ):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "jobs/serve.py", "models.0.id=tiny", f"port={port}",
               f"models.0.load.path={files / 'a2d'}"]  # fmt: skip
    job = subprocess.Popen(
        command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = ""
    while not text.endswith("Ctrl-C stops it\n"):
        text += (line := job.stdout.readline())
        assert line, text
    job.send_signal(signal.SIGINT)
    text += job.communicate(timeout=120)[0]
    assert job.returncode == 0 and not_ours(text) == [], text
    assert "retries" not in text and f"http://127.0.0.1:{port}/v1" in text


def test_ctrl_c_while_ray_starts(files, environ):
    job = InTerminal(training(files, "early"), ROOT, environ)
    job.wait_for("starting Ray")
    job.type(CTRL_C)
    assert job.end() == 130
    assert not_ours(job.text) == [] and "with run.resume=true" in job.text
