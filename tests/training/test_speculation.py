"""Runs that train drafts: joint and gated, over workers and interruptions."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from a2d_ray.data.pipeline import prepare
from a2d_ray.models.checkpoint import load_checkpoint, read_contract
from a2d_ray.models.gated_lora import GatedLinear, gated_linears
from a2d_ray.runs.status import run_status
from a2d_ray.runs.storage import RunDirectory
from a2d_ray.training.assembly import load_model
from a2d_ray.training.preflight import check_run
from a2d_ray.training.stopping import request_stop
from benchmarks.bare_training import BareLoop
from tests.closeness import assert_close
from tests.training.runs import assert_same_losses, fit, metrics
from tests.training.test_resume import num_steps_of, wait_until

CPU = {"dtype": torch.float32, "device": "cpu"}
DRAFTS = {
    "views": 1,
    "clean_attention": "causal",
    "noise": "full",
    "full_share": 0.75,
    "draft_target": "ar",
}
GATED = {
    "model": {"lora": {"r": 4, "noised_only": True}},
    "objective": DRAFTS,
    "optim": {"lr": 3e-3},
    "schedule": {"max_steps": 40, "eval_steps": 20, "save_steps": 10},
}


def figures_of(evaluations, key):
    return [line[key] for line in evaluations]


@pytest.fixture(scope="module")
def gated(ray_local, workshop, make_config):
    """A gated run of one worker that nothing disturbed."""
    return fit(make_config("gated", **GATED))


@pytest.mark.cluster
@pytest.mark.slow
def test_joint_training_reports_drafts_and_leaves_an_ar_mode(ray_local, workshop, make_config):
    schedule = {"eval_rows": 8, "eval_samples": 1}
    changes = {"objective": DRAFTS | {"ar_loss_weight": 1.0}, "schedule": schedule}
    result = fit(make_config("joint", scaling={"num_workers": 2}, **changes))
    contract = read_contract(result.checkpoint.path)
    assert (contract.ar_mode, contract.clean_attention) == ("trained", "causal")
    assert contract.gated_adapters is None
    steps, evaluations = metrics(workshop, "joint")
    masked = [x["masked_fraction"] for x in steps]
    assert len(steps) == 6 and sum(masked) / 6 > 0.75  # 0.875 is expected, 0.5 of other noise
    for line in evaluations:
        assert 1 <= line["eval/accepted_length"] <= 4
        assert all(0 <= line[f"eval/draft_agreement_{j}"] <= 1 for j in range(1, 5))
        assert "eval/draft_agreement_5" not in line
    assert result.metrics["accepted_length"] == evaluations[-1]["eval/accepted_length"]
    status = run_status(str(workshop / "runs"), "joint")
    assert status.accepted_length == evaluations[-1]["eval/accepted_length"]


@pytest.mark.cluster
def test_gated_steps_move_the_adapters_and_no_bit_of_the_original(one_worker, make_config):
    shared = make_config("one")
    packed = prepare(shared.data, shared.objective, shared.model.path)  # as the fixture left it
    loop = BareLoop.of(make_config("gated_steps", **GATED), str(packed.path), seed=0)
    parameters = dict(loop.module.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    assert trained and all("lora_" in n or "trainable_tokens" in n for n in trained)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for number in range(4):
        loop.step(number, number, 4)
    assert {name for name, p in parameters.items() if not torch.equal(p, before[name])} == trained


@pytest.mark.cluster
@pytest.mark.slow
def test_a_gated_run_learns_and_keeps_the_original_bit_for_bit(gated, workshop):
    path = gated.checkpoint.path
    contract = read_contract(path)
    assert contract.ar_mode == "original" and contract.gated_adapters.r == 4
    kept, before = (load_file(Path(p) / "model.safetensors") for p in (path, workshop / "a2d"))
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], before[name]) for name in before)
    _, evaluations = metrics(workshop, "gated")
    samples = (workshop / "runs" / "gated" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 2 * len(evaluations) and len(set(samples[::2])) == len(evaluations)
    nelbo = figures_of(evaluations, "eval/nelbo")
    assert len(nelbo) == 3 and nelbo[-1] < nelbo[0] - 0.1
    model = load_checkpoint(path, **CPU).model
    parts = gated_linears(model)
    assert all(isinstance(p, GatedLinear) and p.b_Or.any() for p in parts.values())
    state = Path(path) / "state" / "exp_avg.safetensors"
    assert all("lora_" in n or "trainable_tokens" in n for n in load_file(state))


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_and_then_one_give_the_same_drafts(gated, workshop, make_config):
    run = workshop / "runs" / "moved_drafts"

    def stop_later():
        wait_until(lambda: num_steps_of(run) >= 4)
        request_stop(RunDirectory.of(str(run.parent), run.name))

    threading.Thread(target=stop_later, daemon=True).start()
    first = fit(make_config(run.name, scaling={"num_workers": 2}, **GATED))
    assert 4 <= first.metrics["step"] < 40
    last = fit(make_config(run.name, run={"resume": True}, **GATED))
    steps, evaluations = metrics(workshop, run.name)
    assert_same_losses(steps, metrics(workshop, "gated")[0], rel=1e-4)
    for key in ("eval/nelbo", "eval/accepted_length"):
        expected = figures_of(metrics(workshop, "gated")[1], key)
        assert figures_of(evaluations, key) == pytest.approx(expected, rel=1e-3)
    adapters = [
        load_file(Path(r.checkpoint.path) / "gated_adapters.safetensors") for r in (last, gated)
    ]
    assert_close(*adapters, rounding=1e-3)


@pytest.mark.cluster
@pytest.mark.slow
def test_gated_adapters_are_trained_on_as_they_are(gated, make_config):
    path = gated.checkpoint.path
    again = make_config("again", **GATED | {"model": {"path": path} | GATED["model"]})
    assert check_run(again).ar_mode == "original"
    loaded, _ = load_model(again, torch.device("cpu"), None)
    saved = gated_linears(load_checkpoint(path, **CPU).model)
    for name, parts in gated_linears(loaded.model).items():
        assert torch.equal(parts.b_Or, saved[name].b_Or) and parts.b_Or.any()
    for lora in (None, {"r": 8, "noised_only": True}):
        config = make_config("other", model={"path": path, "lora": lora}, objective=DRAFTS)
        with pytest.raises(ValueError, match=r"holds gated adapters.*model\.lora\.r=4"):
            check_run(config)


def test_what_gated_adapters_need(make_config, workshop, tmp_path):
    for objective, fix in [
        (DRAFTS | {"ar_loss_weight": 0.5}, "objective.ar_loss_weight=0"),
        ({"views": 1}, "objective.clean_attention=causal"),
        ({"name": "mdlm", "views": 1}, "objective.name=bd3lm"),
    ]:
        with pytest.raises(ValueError, match=rf"model\.lora\.noised_only=true needs .*{fix}"):
            make_config(model=GATED["model"], objective=objective)
    with pytest.raises(ValueError, match=r"load_in_4bit=true changes the AR mode"):
        make_config(model={"load_in_4bit": True} | GATED["model"], objective=DRAFTS)
    old = tmp_path / "old"
    old.mkdir()
    for file in (workshop / "a2d").iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    values = json.loads((old / "config.json").read_text())
    del values["a2d"]["ar_mode"]
    (old / "config.json").write_text(json.dumps(values))
    config = make_config("x", model={"path": str(old)} | GATED["model"], objective=DRAFTS)
    with pytest.raises(ValueError, match=r"noised_only=true keeps an AR mode.*ar_loss_weight=1"):
        check_run(config)
