"""A sweep whose trials are reinforcement learning."""

import csv
import json
import subprocess
import sys

import pytest

from a2d_ray.cli import to_yaml
from a2d_ray.config import SweepConfig
from tests.commands import ROOT


@pytest.mark.own_cluster
@pytest.mark.slow
@pytest.mark.nightly
def test_trials_are_ranked_by_their_held_out_reward(make_config, tmp_path):
    train = make_config("base", schedule={"max_steps": 2, "eval_steps": 2})
    values = {
        "sweep": {
            "name": "rewards", "storage_path": str(tmp_path), "num_trials": 2, "search": "random",
            "scheduler": "none", "metric": "reward", "max_concurrent": 2,
        },
        "space": {"rl.clip_high": {"choice": [0.2, 0.28]}, "rl.group_size": {"choice": [2, 4]}},
        "train": json.loads(train.model_dump_json()),
    }  # fmt: skip
    file = tmp_path / "sweep.yaml"
    file.write_text(to_yaml(SweepConfig.model_validate(values)))
    command = [sys.executable, "jobs/sweep.py", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "rewards" / "results.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["status"] for row in rows] == ["finished"] * 2
    for row in rows:
        run = tmp_path / "rewards" / "trials" / f"trial-{row['trial']}"
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        assert float(row["reward"]) in [x["eval/reward"] for x in lines if "eval/reward" in x]
    assert (tmp_path / "rewards" / "best.yaml").exists()
