"""A tiny A2D model and a small mixture to train on."""

import json

import pytest

from a2d_ray.config import TrainConfig
from tests.tiny import save_tiny_ar
from tests.training.runs import fit, metrics


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """Directory with `a2d` (a converted tiny model) and `rows.jsonl` (300 short chats)."""
    from a2d_ray import convert

    root = tmp_path_factory.mktemp("training")
    convert(str(save_tiny_ar(root / "ar")), root / "a2d")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": f"ok {i} " * (i % 4 + 1)},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": f"{i}"},
            ]
        }
        for i in range(300)
    ]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="session")
def make_config(workshop):
    """Builds a TrainConfig on the workshop; sections are updated by keyword."""

    def make(name="run", **sections):
        values = {
            "run": {"name": name, "storage_path": str(workshop / "runs")},
            "model": {"path": str(workshop / "a2d"), "dtype": "float32"},
            "data": {
                "spec": str(workshop / "rows.jsonl"),
                "packed_path": str(workshop / "packed"),
                "max_length": 96,
                "tokens_per_row": 384,
            },
            "objective": {"name": "bd3lm", "block_size": 4, "views": 2},
            "batch": {"rows": 4},
            "optim": {"lr": 1e-2, "weight_decay": 0.1},
            "schedule": {"max_steps": 6, "eval_steps": 3, "save_steps": 3},
            "scaling": {"num_workers": 1, "max_failures": 0},
        }
        for section, changes in sections.items():
            values[section] = values.get(section, {}) | changes
        if values["objective"]["name"] == "mdlm":
            values["data"].setdefault("eos_tail", 8)
        return TrainConfig.model_validate(values)

    return make


@pytest.fixture(scope="session")
def one_worker(ray_local, workshop, make_config):
    """A finished run of one worker, and its metrics."""
    result = fit(make_config("one"))
    return result, *metrics(workshop, "one")
