"""A tiny A2D model and prompts to answer."""

import json

import pytest

from a2d_ray.config import TrainConfig
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="session")
def gym(tmp_path_factory):
    """Directory with `a2d` (a converted tiny model) and `rows.jsonl` (60 questions)."""
    from a2d_ray import convert

    root = tmp_path_factory.mktemp("rl")
    convert(str(save_tiny_ar(root / "ar")), root / "a2d")
    rows = [{"question": f"say {i}", "answer": f"{i}", "points": i % 3} for i in range(60)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="session")
def make_config(gym):
    """Builds a TrainConfig on the gym; sections are updated by keyword, `rl` by `rl_` keys."""

    def make(name="run", **sections):
        values = {
            "run": {"name": name, "storage_path": str(gym / "runs")},
            "model": {"path": str(gym / "a2d"), "dtype": "float32"},
            "data": {
                "spec": f"{gym}/rows.jsonl",
                "test_fraction": 0.1,
                "max_length": 64,
                "tokens_per_row": 256,
                "packing": False,
            },
            "objective": {
                "name": "bd3lm",
                "block_size": 4,
                "clean_attention": "causal",
                "first_block": "random",
                "ar_loss_weight": 1.0,
                "noise": "full",
                "corruption_warmup": 0.0,
            },
            "batch": {"rows": 8},
            "optim": {"lr": 1e-2, "schedule": "constant", "warmup": 0.0},
            "schedule": {"max_steps": 4, "eval_steps": 2, "save_steps": 2},
            "scaling": {"num_workers": 1, "max_failures": 0},
            "rl": {
                "group_size": 4,
                "eval_prompts": 4,
                "reward": {"kind": "function", "function": "tests.rl.judges:share_of_small"},
            },
        }
        rollout = {
            "sampling": {
                "rule": "speculate",
                "draft_tokens": 2,
                "draft_shape": "linear",
                "temperature": 1.0,
                "max_new_tokens": 12,
            }
        }
        for section, changes in sections.items():
            if section == "rollout":
                rollout |= changes
            else:
                values[section] = values.get(section, {}) | changes
        values["rl"] = values["rl"] | {"rollout": rollout}
        return TrainConfig.model_validate(values)

    return make
