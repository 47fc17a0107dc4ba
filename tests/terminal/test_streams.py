"""The terminal is ours: chatter goes to a file, by whatever way it is printed."""

import os
import re
import subprocess
import sys
import time

import pytest

from a2d_ray.terminal.notices import MARK, Notices
from tests.commands import ROOT
from tests.terminal.pty_command import CTRL_C, InTerminal

CHATTER = """
import logging, os, subprocess, sys, time, warnings
import a2d_ray.cli.job as job
from a2d_ray.terminal.streams import say, tell

def chatter():
    print("chatter-print")
    sys.stderr.write("chatter-stderr\\n")
    os.write(1, b"chatter-fd\\n")
    subprocess.run(["echo", "chatter-child"])
    warnings.warn("chatter-warning")
    logging.getLogger("ray").warning("chatter-logging")
    logging.getLogger("a2d_ray.x").info("it begins")
    logging.getLogger("a2d_ray.x").warning("mind the gap")
    say("a result")
"""
WAYS = ("print", "stderr", "fd", "child", "warning", "logging")


def run_job(code, tmp_path, *, verbose=False):
    """Output, errors, exit code of a job that chatters and then does `code`; and its log."""
    body = code.replace("\n", "\n    ")
    script = f"{CHATTER}\ndef main():\n    chatter()\n    {body}\n"
    script += f"job.run(main, name='noise', is_verbose={verbose})\n"
    environ = os.environ | {"A2D_LOG_DIR": str(tmp_path / "logs")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    logs = [path.read_text() for path in sorted((tmp_path / "logs").glob("noise-*.log"))]
    return done, "".join(logs)


def test_our_lines_reach_the_terminal_and_all_others_the_log(tmp_path):
    done, log = run_job("pass", tmp_path)
    assert (done.returncode, done.stdout) == (0, "a result\n")
    assert done.stderr == "it begins\nwarning: mind the gap\n"
    assert all(log.count(f"chatter-{way}") >= 1 for way in WAYS)
    assert (tmp_path / "logs").stat().st_mode & 0o77 == 0
    done, log = run_job("pass", tmp_path / "verbose", verbose=True)
    assert all(f"chatter-{way}" in done.stdout + done.stderr for way in WAYS) and not log


@pytest.mark.parametrize(
    ("code", "exit_code", "shown"),
    [
        ("raise ValueError('key=1 is odd: set 2')", 2, r"error: key=1 is odd: set 2\nlog: \S+"),
        ("{}['lost']", 1, r"Traceback.*KeyError: 'lost'\nlog: \S+"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise SystemExit(75)", 75, ""),
        ("os.kill(os.getpid(), 11)", -11, r"Fatal Python error: Segmentation fault.*"),
    ],
)
def test_what_ends_a_job_is_shown_and_the_log_is_named(code, exit_code, shown, tmp_path):
    done, log = run_job(code, tmp_path)
    assert done.returncode == exit_code and "chatter" not in done.stderr
    told = done.stderr.removeprefix("it begins\nwarning: mind the gap\n").strip()
    assert re.fullmatch(shown, told, re.S), told
    assert "chatter-print" in log
    if exit_code == 1:
        assert "Traceback" in log and str(next((tmp_path / "logs").iterdir())) in told


def test_a_job_that_is_quiet_by_itself_leaves_no_log(tmp_path):
    (tmp_path / "runs").mkdir()
    environ = os.environ | {"A2D_LOG_DIR": str(tmp_path / "logs")}
    done = subprocess.run(
        [sys.executable, "jobs/status.py", f"storage_path={tmp_path}/runs"],
        cwd=ROOT, env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and "no runs" in done.stdout
    assert list((tmp_path / "logs").iterdir()) == []


# As Ray 2.60 prints them.
STUCK = {
    "\x1b[33m(autoscaler +1m9s)\x1b[0m Error: No available node types can fulfill resource "
    "requests {'GPU': 1.0}*2.": "Ray: Error: No available node types can fulfill resource "
    "requests {'GPU': 1.0}*2.",
    "(raylet) [2026-01-01 00:00:00,000 E 1 1] file_system_monitor.cc:116: /tmp/ray is over 95% "
    "full, available space: 1.2 GB": "Ray: [2026-01-01 00:00:00,000 E 1 1] "
    "file_system_monitor.cc:116: /tmp/ray is over 95% full, available space: 1.2 GB",
    "(raylet) 3 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed":
    "Ray: 3 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed",
    "(TrainController pid=7) [FailurePolicy] RETRY":
    "workers failed; the run goes on from its last checkpoint",
    f"\x1b[36m(RayTrainWorker pid=9, ip=10.0.0.2)\x1b[0m {MARK}step 3 could not be saved":
    "step 3 could not be saved",
}  # fmt: skip
HARMLESS = [
    "(TrainController pid=7) Requesting resources: {'CPU': 1} * 1",
    "(RayTrainWorker pid=9) Loading weights: 100%|██████| 20/20",
    "(TrainController pid=7) [FailurePolicy] RAISE",  # the error itself follows
    "(raylet) Task ServeController.graceful_shutdown failed. There are infinite retries remaining",
]


def test_what_the_user_can_act_on_is_told_once():
    found = Notices()
    assert [found.find(line) for line in STUCK] == list(STUCK.values())
    assert all(found.find(re.sub(r"\d", "4", line)) is None for line in STUCK)  # other numbers
    assert all(found.find(line) is None for line in HARMLESS)


def test_a_worker_s_own_warnings_reach_the_driver(tmp_path):
    code = (
        "import logging\nfrom a2d_ray.terminal.notices import mark_warnings\n"
        "mark_warnings(); mark_warnings()\nlogging.getLogger('a2d_ray.y').warning('disk %d', 7)\n"
        "logging.getLogger('a2d_ray.y').info('no')"
    )
    worker = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert worker.stderr == f"{MARK}disk 7\n"
    line = worker.stderr.strip()
    done, _ = run_job(f"print('(Worker pid=3) {line}')\nprint('more')", tmp_path)
    assert done.stderr.endswith("warning: disk 7\n")


PROGRESS = """
import time
from a2d_ray.cli.job import run
from a2d_ray.terminal import progress
progress.PIPE_PERIOD_S = 0.05
def main():
    with progress.Progress("train", 3, "step") as bar:
        for n in (1, 2, 3):
            time.sleep(0.06)
            print("chatter")
            bar.move_to(n, {"loss": f"{1 / n:.2f}"})
    assert list(progress.following("ab", "write", 2, "part")) == ["a", "b"]
run(main)
"""


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_pipe(tmp_path):
    environ = os.environ | {"A2D_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRESS]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and "\r" not in done.stderr and done.stdout == ""
    assert lines[1].startswith("train: 2 of 3 steps, loss 0.50, 0:00 so far, 0:00 left")
    assert lines[2].startswith("train: 3 of 3 steps, loss 0.33") and "left" not in lines[2]
    assert lines[3].startswith("write: 2 of 2 parts")
    shown = InTerminal(command, ROOT, environ)
    assert shown.end() == 0 and "chatter" not in shown.text
    assert "3/3 [" in shown.text and "loss=0.33" in shown.text and "100%" in shown.text


@pytest.mark.parametrize("moment", ["imports", "the program"])
def test_ctrl_c_is_one_line(moment, tmp_path):
    """While libraries load, and while a job waits."""
    (tmp_path / "slow.py").write_text(
        "import time, sys\nsys.stderr.write('')\n"
        "def wait():\n    try:\n        open(sys.argv[1], 'w').close()\n        time.sleep(60)\n"
        "    finally:\n        print('a stack')\n" + ("wait()\n" if moment == "imports" else "")
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from a2d_ray.cli.job import run\n"
        "def main():\n    import slow\n    slow.wait()\nrun(main, resume='the same command')"
    )
    started = tmp_path / "started"
    environ = os.environ | {"A2D_LOG_DIR": str(tmp_path / "logs")}
    shown = InTerminal([sys.executable, "-c", code, str(started)], ROOT, environ)
    while not started.exists():
        time.sleep(0.02)
    shown.type(CTRL_C)
    assert shown.end() == 130
    assert shown.text.replace("^C", "").split("\r\n") == [
        "interrupted; to go on: the same command",
        "",
    ]


def test_ctrl_c_before_a_job_runs():
    code = "import os, signal\nfrom a2d_ray.jobs import run\nrun._leave(signal.SIGINT, None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
