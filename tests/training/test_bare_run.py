"""Ray Train and DeepSpeed add nothing to the mathematics: a run is the bare loop."""

import pytest

from a2d_ray.data.packing.packed import PackedSet
from benchmarks.bare_training import BareLoop
from tests.training.runs import fit, metrics

STEPS = 4


def bare_losses(config, steps=STEPS):
    from a2d_ray.data.pipeline import prepare

    packed: PackedSet = prepare(config.data, config.objective, config.model.path)
    loop = BareLoop.of(config, str(packed.path), config.run.seed)
    total = config.schedule.max_steps
    return [loop.step(number, number, total)[0] for number in range(steps)]


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["default", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_run_on_ray_is_the_bare_loop(name, one_worker, make_config, workshop):
    if name == "default":
        config, lines = make_config("one"), one_worker[1]
    else:
        config = make_config(
            "reference",
            objective={
                "preset": "reference",
                "block_grid": "absolute",
                "noise": "bernoulli",
                "noise_per": "sequence",
                "norm": "sequence",
                "views": 1,
                "corruption_warmup": 0.0,
            },
            data={"packing": False, "targets": "last"},
            batch={"rows": 6, "rows_per_device": 3},
            schedule={"max_steps": STEPS, "eval_steps": 0, "save_steps": 0},
        )
        fit(config)
        lines = metrics(workshop, "reference")[0]
    losses = [line["loss"] for line in lines[:STEPS]]
    assert losses == pytest.approx(bare_losses(config), rel=1e-5)


@pytest.mark.cluster
@pytest.mark.slow
def test_zero_3_on_two_ray_workers_is_the_bare_loop(ray_local, make_config, workshop):
    config = make_config(
        "zero3",
        scaling={"num_workers": 2},
        schedule={"max_steps": STEPS, "eval_steps": 0, "save_steps": 0},
        deepspeed={"zero_optimization": {"stage": 3}},
    )
    fit(config)
    losses = [line["loss"] for line in metrics(workshop, "zero3")[0]]
    assert losses == pytest.approx(bare_losses(config), rel=1e-5)
