"""Fits tiny runs and reads what they leave."""

import json

import pytest


def fit(config):
    from a2d_ray.training import build_trainer

    return build_trainer(config).fit()


def metrics(workshop, name):
    """Lines of training steps and of evaluations."""
    text = (workshop / "runs" / name / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [x for x in lines if "loss" in x], [x for x in lines if "eval/nelbo" in x]


def assert_same_losses(a, b, *, rel):
    assert [x["step"] for x in a] == [x["step"] for x in b]
    for key in ("loss", "grad_norm"):
        assert [x[key] for x in a] == pytest.approx([x[key] for x in b], rel=rel), key
