"""Status of runs from what is on disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from a2d_ray.runs.status import duration, format_status, list_runs, run_status

ROOT = Path(__file__).parent.parent.parent


def write_run(root, name, *, steps, num_steps=100, saved=None, age_s=0.0, tail=""):
    run = root / name
    run.mkdir(parents=True)
    (run / "plan.json").write_text(json.dumps({"packed_path": "/p", "num_steps": num_steps}))
    lines = [{"step": 0, "eval/nelbo": 9.0}]
    for step in range(1, steps + 1):
        slow = 100.0 if step == 1 else 0.0  # the first step loads and compiles
        lines.append(
            {"step": step, "loss": 5 - step / 100, "tokens_per_s": 200.0, "step_s": 2 + slow}
        )
        if step % 10 == 0:
            drafts = {"eval/accepted_length": 1 + step / 100}
            lines.append({"step": step, "eval/nelbo": 9 - step / 100} | drafts)
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (run / "metrics.jsonl").write_text(text)
    if saved is not None:
        name = "checkpoint-final" if saved == num_steps else f"checkpoint_{saved:08d}"
        latest = {"checkpoint_dir_name": name, "metrics": {"step": saved}}
        (run / "checkpoint_manager_snapshot.json").write_text(
            json.dumps({"latest_checkpoint_result": latest})
        )
    then = time.time() - age_s
    os.utime(run / "metrics.jsonl", (then, then))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path, "done", steps=100, saved=100, age_s=1e6)
    write_run(tmp_path, "going", steps=40, saved=30)
    write_run(tmp_path, "killed", steps=25, saved=20, age_s=3965, tail='{"step": 26, "lo')
    write_run(tmp_path, "new", steps=0)
    (tmp_path / "not-a-run").mkdir()
    return tmp_path


def test_states_steps_and_checkpoints(runs):
    assert list_runs(str(runs)) == ["done", "going", "killed", "new"]
    done, going, killed, new = (run_status(str(runs), name) for name in list_runs(str(runs)))
    assert [r.state for r in (done, going, killed, new)] == [
        "finished", "running", "stopped", "starting",
    ]  # fmt: skip
    assert done.checkpoint == "checkpoint-final" and done.eta_s == 0
    assert (going.step, going.checkpoint, going.checkpoint_step) == (40, "checkpoint_00000030", 30)
    assert going.eta_s == 60 * 2 and going.tokens_per_s == 200
    assert going.loss == pytest.approx(4.6) and going.nelbo == pytest.approx(8.6)
    assert going.accepted_length == pytest.approx(1.4) and new.accepted_length is None
    assert (killed.step, killed.checkpoint_step) == (25, 20)  # half a line is no step
    assert killed.quiet_s == pytest.approx(3965, abs=60)
    assert new.step == 0 and new.eta_s is None and new.nelbo == 9.0 and new.checkpoint is None


def test_slow_steps_are_no_stop(tmp_path):
    write_run(tmp_path, "slow", steps=5, age_s=300)
    assert run_status(str(tmp_path), "slow").state == "stopped"
    (tmp_path / "slow" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "step_s": 60.0}\n')
    assert run_status(str(tmp_path), "slow", now=time.time() + 500).state == "running"
    assert run_status(str(tmp_path), "slow", now=time.time() + 700).state == "stopped"


def test_what_is_not_there(tmp_path, runs):
    with pytest.raises(ValueError, match=r"no run other: .*plan.json"):
        run_status(str(runs), "other")
    with pytest.raises(ValueError, match=r"storage_path=.*nowhere"):
        list_runs(str(tmp_path / "nowhere"))


def test_table_has_a_line_per_run(runs):
    table = format_status([run_status(str(runs), name) for name in list_runs(str(runs))])
    header, *lines = table.splitlines()
    assert header.split()[:2] == ["run", "state"] and len(lines) == 4
    assert "40/100" in lines[1] and "2 min" in lines[1]
    assert "stopped (1 h 6 min ago)" in lines[2] and "none yet" in lines[3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (423, "7 min 3 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_command(runs):
    def run(*args):
        command = [sys.executable, "jobs/status.py", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    shown = run(f"storage_path={runs}", "--json")
    assert [r["state"] for r in json.loads(shown.stdout)][:2] == ["finished", "running"]
    assert "going" in run(f"storage_path={runs}", "name=going").stdout
    refused = run(f"storage_path={runs}", "name=nobody")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
