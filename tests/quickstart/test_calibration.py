"""Steps are timed by training itself, beside the run that they are for."""

import json

import pytest

from a2d_ray import convert
from a2d_ray.config import TrainConfig
from a2d_ray.quickstart.calibration import choose_steps, steps_within
from tests.tiny import save_tiny_ar


@pytest.mark.cluster
@pytest.mark.slow
def test_steps_are_timed_on_the_run_itself(ray_local, tmp_path):
    model = convert(str(save_tiny_ar(tmp_path / "ar")), tmp_path / "model")
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig.model_validate(
        {
            "run": {"name": "train", "storage_path": str(tmp_path / "runs"), "resume": True},
            "model": {"path": str(model), "dtype": "float32"},
            "data": {
                "spec": str(tmp_path / "rows.jsonl"),
                "packed_path": str(tmp_path / "packed"),
                "max_length": 64,
                "tokens_per_row": 256,
            },
            "objective": {"name": "bd3lm", "block_size": 4},
            "batch": {"rows": 2},
            "schedule": {"max_steps": 20, "eval_steps": 0.5, "eval_rows": 6},
            "scaling": {"num_workers": 1},
        }
    )
    plan = choose_steps(config, minutes=1)
    assert 0.001 < plan["seconds_per_step"] < 60
    assert plan["steps"] == steps_within(1, plan["seconds_per_step"])
    assert not list((tmp_path / "runs").iterdir())


def test_steps_fit_into_the_minutes():
    assert steps_within(9, 5.4) == 100
    assert steps_within(0.1, 5.0) == 20
    assert steps_within(9, 0.001) == 2000
