"""Whole runs on a GPU, and the same code on a CPU: full weights, adapters, 4 bits.

No GPU has run this yet. Heads are as wide as FlexAttention asks for.
"""

import importlib.util
import json

import pytest

from tests.devices import GPU
from tests.tiny import save_tiny_ar
from tests.training.runs import fit, metrics
from tests.training.test_bare_run import bare_losses

pytestmark = pytest.mark.cluster

STEPS = 4
CPU = pytest.param("cpu", marks=[pytest.mark.slow, pytest.mark.nightly])
LORA = {"lora": {"r": 4}}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    from a2d_ray import convert

    root = tmp_path_factory.mktemp("wide")
    convert(str(save_tiny_ar(root / "ar", hidden_size=64)), root / "a2d")
    return root / "a2d"


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("kind", ["full", "lora", "4 bits"])
def test_a_run_learns_answers_and_ends(kind, device, wide, ray_local, make_config, workshop):
    """Full weights take the steps of the bare loop, which runs on the CPU."""
    if kind == "4 bits" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    name = f"{device} {kind}".replace(" ", "-")
    options = {"full": {}, "lora": LORA, "4 bits": {**LORA, "load_in_4bit": True}}[kind]
    config = make_config(
        name,
        model={"path": str(wide), **options},
        schedule={"max_steps": STEPS, "eval_steps": STEPS, "save_steps": 0},
        scaling={"use_gpu": device == "cuda"},
    )
    result = fit(config)
    steps, evaluations = metrics(workshop, name)
    losses = [line["loss"] for line in steps]
    assert len(losses) == STEPS and [line["step"] for line in evaluations] == [0, STEPS]
    assert evaluations[-1]["eval/nelbo"] < evaluations[0]["eval/nelbo"]
    samples = (workshop / "runs" / name / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in samples} == {0, STEPS}
    assert result.metrics["step"] == STEPS
    if kind == "full":
        assert losses == pytest.approx(bare_losses(config), rel=1e-3)
