"""The real stack: Ray Train, DeepSpeed ZeRO-2 on gloo, Ray Data, on a tiny fp32 model."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from a2d_ray.runs.status import format_status, run_status
from a2d_ray.training import trainer
from tests.closeness import assert_close
from tests.training import slow_rank
from tests.training.runs import assert_same_losses, fit, metrics

pytestmark = pytest.mark.cluster


def test_a_run_learns_and_leaves_everything(one_worker, workshop):
    result, steps, evaluations = one_worker
    run = workshop / "runs" / "one"
    assert [x["step"] for x in steps] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in evaluations] == [0, 3, 6]
    for key in ("eos_fraction", "masked_fraction", "utilisation"):
        assert all(0 < x[key] <= 1 for x in steps), key
    assert all(0 <= x["eval/accuracy_1"] <= 1 and x["eval/ce_1"] > 0 for x in evaluations)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [x["step"] for x in samples] == [0, 0, 3, 3, 6, 6]
    assert "<|im_start|>user" in samples[0]["prompt"] and samples[0]["reference"]
    assert evaluations[-1]["eval/nelbo"] < 0.9 * evaluations[0]["eval/nelbo"]
    assert result.checkpoint.path == str(run / "checkpoint-final")
    assert result.metrics["step"] == 6 and result.metrics["rows"] == 24
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "config.yaml").exists() and (run / "checkpoint_00000003").exists()


def test_the_checkpoint_is_a_model_with_a_contract(one_worker):
    from a2d_ray import SamplingParams, load

    lm = load(one_worker[0].checkpoint.path, dtype="float32", device="cpu")
    assert lm.contract.objective == "bd3lm" and lm.contract.block_sizes == (4,)
    chat = [{"role": "user", "content": "say 5"}]
    (answer,) = lm.generate([chat], SamplingParams(max_new_tokens=12))
    assert 1 <= answer.num_forwards <= 12
    with pytest.raises(ValueError, match="block_size"):
        lm.generate([chat], SamplingParams(max_new_tokens=8, block_size=8))


@pytest.fixture(scope="module")
def two_workers(one_worker, make_config):
    """A finished run of two workers, "two", whose second one is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_loop", slow_rank.train_loop)
        return fit(make_config("two", scaling={"num_workers": 2}))


def test_a_slow_worker_is_named(two_workers, workshop):
    steps, _ = metrics(workshop, "two")
    for x in steps[1:]:  # before the first one rank 0 reports, and starts later than rank 1
        assert x["time/slowest_rank_s"] >= x["time/median_rank_s"] > 0
        # Each rank has a clock of its own: on a busy machine they differ a little.
        assert x["time/slowest_rank_s"] <= 1.2 * x["step_s"]
    status = run_status(str(workshop / "runs"), "two")
    straggler = status.straggler
    assert straggler.rank == 1 and straggler.node
    assert straggler.own_s >= slow_rank.SLOW_S / 2  # the rest hides behind the step before
    assert f"two: rank 1 on node {straggler.node} is slow" in format_status([status])


def test_one_worker_is_no_straggler(one_worker, workshop):
    status = run_status(str(workshop / "runs"), "one")
    assert status.straggler is None and "slow" not in format_status([status])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("two", None),
        pytest.param(
            "two_accumulated",
            {"scaling": {"num_workers": 2}, "batch": {"rows_per_device": 1}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_losses_and_norms_do_not_depend_on_workers_or_accumulation(
    one_worker, two_workers, workshop, make_config, name, changes
):
    if changes is not None:
        fit(make_config(name, **changes))
    steps, evaluations = metrics(workshop, name)
    assert_same_losses(steps, one_worker[1], rel=1e-4)
    nelbo = [x["eval/nelbo"] for x in one_worker[2]]
    assert [x["eval/nelbo"] for x in evaluations] == pytest.approx(nelbo, rel=1e-4)
    ours, theirs = (
        load_file(workshop / "runs" / run / "checkpoint-final" / "state" / "exp_avg.safetensors")
        for run in (name, "one")
    )
    assert_close(ours, theirs, rounding=1e-4)  # six steps of Adam carry the rounding of each


@pytest.mark.slow
def test_mdlm_and_a_change_of_objective(one_worker, workshop, make_config):
    result = fit(
        make_config(
            "mdlm",
            model={"path": one_worker[0].checkpoint.path, "change_objective": True},
            objective={"name": "mdlm", "block_size": 8},
            schedule={"max_steps": 2, "eval_steps": 0, "save_steps": 0},
            wandb={"mode": "offline"},
        )
    )
    config = json.loads((Path(result.checkpoint.path) / "config.json").read_text())
    assert config["a2d"]["objective"] == "mdlm"
    assert [x["step"] for x in metrics(workshop, "mdlm")[0]] == [1, 2]
    (wandb_run,) = (workshop / "runs" / "mdlm" / "wandb").glob("offline-run-*")
    assert wandb_run.name.endswith("-mdlm") and any(wandb_run.glob("*.wandb"))
