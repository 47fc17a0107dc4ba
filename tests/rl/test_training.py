"""Whole runs: wherever roll-outs are drawn and whatever dies, they are the same run."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.timeout(600),
]
LONG = {
    "optim": {"lr": 3e-3},
    "schedule": {"max_steps": 30, "eval_steps": 15, "save_steps": 5, "eval_samples": 1},
    "batch": {"rows": 16},
}
SEPARATE = {"placement": "separate", "num_workers": 2}


def lines_of(gym, name):
    file = gym / "runs" / name / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def pids_of(kind):
    """Processes of this test's own Ray: those below this one."""
    below = psutil.Process().children(recursive=True)
    return [each.pid for each in below if each.name().startswith(f"ray::{kind}"[:15])]


def kill_when(gym, name, num_lines, found):
    """Kills the training worker, and then a roll-out actor of the next attempt, in the middle."""
    for kind, lines in (("RayTrainWorker", num_lines), ("RolloutWorker", num_lines + 8)):
        while len(lines_of(gym, name)) < lines:
            time.sleep(0.01)
        os.kill(pids_of(kind)[0], signal.SIGKILL)
        found.append(kind)


def test_a_run_apart_whose_processes_are_killed_is_the_run_of_two_undisturbed_ranks(
    ray_local, gym, make_config
):
    from a2d_ray.rl import build_rl_trainer
    from a2d_ray.runs.status import run_status

    together = make_config("together", scaling={"num_workers": 2}, **LONG)
    assert build_rl_trainer(together).fit().error is None
    config = make_config("apart", scaling={"max_failures": 1}, rollout=SEPARATE, **LONG)
    found = []
    threading.Thread(target=kill_when, args=(gym, "apart", 8, found), daemon=True).start()
    assert build_rl_trainer(config).fit().error is None
    assert found == ["RayTrainWorker", "RolloutWorker"]
    one, other = lines_of(gym, "together"), lines_of(gym, "apart")
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for key in ("loss", "grad_norm", "rl/reward", "eval/reward", "rl/accepted_length"):
        values = [[line[key] for line in lines if key in line] for lines in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=2e-3), key
    steps = [line for line in one if "loss" in line]
    assert all(line["rl/ratio"] == pytest.approx(1, abs=1e-4) for line in steps)
    assert all(line["rl/logprob_gap"] < 1e-4 for line in steps)
    status = run_status(str(gym / "runs"), "apart")
    assert status.state == "finished" and status.reward == other[-1]["eval/reward"]


def test_a_checkpoint_without_an_ar_mode_learns_by_its_bound(ray_local, gym, make_config):
    from a2d_ray.rl import build_rl_trainer

    config = make_config(
        "bound",
        objective={
            "clean_attention": "block",
            "first_block": "whole",
            "ar_loss_weight": 0.0,
            "noise": "exact",
            "views": 2,
        },
        rl={"likelihood": "nelbo", "ratio": "sequence", "resample": 1},
        rollout={"sampling": {"rule": "threshold", "temperature": 1.0, "max_new_tokens": 12}},
        **LONG,
    )
    assert build_rl_trainer(config).fit().error is None
    steps = [line for line in lines_of(gym, "bound") if "loss" in line]
    rewards = [line["rl/reward"] for line in steps]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5
