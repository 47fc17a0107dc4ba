"""The search space is checked against the run before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from a2d_ray.cli import parse_config
from a2d_ray.config import OptionError, SweepConfig, TrainConfig
from a2d_ray.sweeps.space import read_space, trial_config, with_shared_data

ROOT = Path(__file__).parent.parent.parent


def sweep(*args):
    return parse_config(SweepConfig, "sweep", args)


def test_the_shipped_sweep_is_a_good_one():
    dimensions = {d.key: (d.kind, d.values) for d in read_space(sweep())}
    assert dimensions["optim.lr"] == ("loguniform", (1e-5, 1e-3))
    assert dimensions["objective.views"] == ("choice", (1, 2))


def test_any_key_in_any_form():
    config = sweep(
        "space.data.max_length={choice: [64, 128]}",
        "space.deepspeed.zero_optimization.stage={choice: [0, 2]}",
        "space.schedule.epochs={uniform: [0.5, 1e1]}",
        "space.batch.rows={randint: [4, 9]}",
        "space.optim.lr={loguniform: [1e-6, 1e-2]}",
    )
    found = {d.key: d for d in read_space(config)}
    assert found["deepspeed.zero_optimization.stage"].values == (0, 2)
    assert found["batch.rows"].corners == (4, 8)
    assert found["optim.lr"].values == (1e-6, 1e-2)  # YAML calls 1e-6 a string
    dotted = config.model_copy(update={"space": {"optim.lr": {"uniform": [0.1, 0.2]}}})
    assert [d.key for d in read_space(dotted)] == ["optim.lr"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["space.optim.lrr={choice: [1]}"], r"space.optim.lrr=1 .*lrr=1 is unknown.*optim.lr\?"),
        (["space.optim.lr={loguniform: [0, 1]}"], r"space.optim.lr.loguniform.*above 0"),
        (["space.optim.lr={uniform: [2, 1]}"], r"low must be below high"),
        (["space.optim.lr={uniform: [1]}"], r"two numbers"),
        (["space.optim.lr={uniform: [a, b]}"], r"two numbers"),
        (["space.optim.lr={normal: [0, 1]}"], r"is no distribution: give"),
        (["space.optim.lr=3"], r"space.optim.lr=3 .*give \{choice"),
        (["space.optim.lr={choice: []}"], r"space.optim.lr.choice=\[\] is empty"),
        (["space={}"], r"space=\{\} is empty"),
        (["sweep.metric=accepted_length"], r"set train\.objective\.clean_attention=causal"),
        (
            ["space.objective.views={choice: [1, 3]}"],
            r"space.objective.views=3 .*: objective.views=3",
        ),
        (["space.data.max_length={choice: [127]}"], r"space.data.max_length=127.*multiple"),
        (["space.run.name={choice: [a, b]}"], r"space.run.name=.*each trial's own"),
        (["space.objective.block_size={choice: [2, 4]}"], r"sweep.metric=exact_match"),
        (["space.optim.decay={choice: [0.1]}"], r"space.optim.decay=0.1 .*optim.schedule=wsd"),
        (["space.objective.schedule={choice: [cosine]}"], r"set objective.noise=bernoulli"),
        (["train.schedule.eval_steps=0"], r"train.schedule.eval_steps=0"),
        (["sweep.metric=exact_match"], r"sweep.exact_match_tasks"),
        (
            ["sweep.metric=exact_match", "sweep.exact_match_tasks=8"],
            r"sweep.scheduler=asha.*sweep.scheduler=none",
        ),
    ],
)
def test_bad_spaces_name_key_value_and_fix(args, message):
    with pytest.raises(ValueError, match=message):
        read_space(sweep(*args))


def test_block_sizes_are_compared_by_answers_or_apart():
    blocks = "space.objective.block_size={choice: [2, 4]}"
    read_space(sweep(blocks, "sweep.search=random", "sweep.scheduler=none"))
    read_space(
        sweep(
            blocks, "sweep.scheduler=none", "sweep.metric=exact_match", "sweep.exact_match_tasks=8"
        )
    )


def test_a_trial_changes_its_keys_and_what_it_must_have_for_itself():
    base = parse_config(TrainConfig, "sft_bd3lm", ["deepspeed={}"])
    point = {"optim.lr": 0.5, "deepspeed.zero_optimization.stage": 1}
    trial = trial_config(base, point, name="t", storage_path="/s")
    assert trial.optim.lr == 0.5 and trial.deepspeed == {"zero_optimization": {"stage": 1}}
    assert (trial.run.name, trial.run.storage_path, trial.run.resume) == ("t", "/s", True)
    assert trial.schedule.save_steps == base.schedule.eval_steps and trial.schedule.keep_last == 1
    unchanged = {"run", "schedule", "optim", "deepspeed"}
    assert trial.model_dump(exclude=unchanged) == base.model_dump(exclude=unchanged)


def test_options_that_need_each_other_can_be_searched_together():
    """Where one takes the effect of another in a point, the other is left out of that trial."""
    config = sweep(
        "train.optim.schedule=wsd",
        "space={}",
        "space.optim.schedule={choice: [wsd, cosine]}",
        "space.optim.decay={uniform: [0.1, 0.4]}",
    )
    assert [d.key for d in read_space(config)] == ["optim.schedule", "optim.decay"]
    for schedule, decay in (("wsd", 0.3), ("cosine", 0.2)):
        point = {"optim.schedule": schedule, "optim.decay": 0.3}
        trial = trial_config(config.train, point, name="t", storage_path="/s")
        assert (trial.optim.schedule, trial.optim.decay) == (schedule, decay)


@pytest.mark.parametrize(
    ("sizes", "shared"), [([2, 4, 8], 8), ([1, 2], 4), ([3, 4], None), (None, None)]
)
def test_block_sizes_that_divide_the_largest_share_one_packed_set(sizes, shared):
    extra = [] if sizes is None else [f"space.objective.block_size={{choice: {sizes}}}"]
    free = ["sweep.search=random", "sweep.scheduler=none", "train.data.max_length=120"]
    config = sweep(*extra, *free)
    base = with_shared_data(config.train, read_space(config))
    assert base.data.max_block_size == shared and base.data.max_views == 2
    rest = {"data"}
    assert base.model_dump(exclude=rest) == config.train.model_dump(exclude=rest)


def test_rows_too_small_to_be_shared_are_refused():
    config = sweep("train.objective.views=1", "train.data.tokens_per_row=256")
    with pytest.raises(OptionError, match=r"data.max_views=2|space.objective.views=2"):
        with_shared_data(config.train, read_space(config))


def test_the_command_refuses_before_ray_loads():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "jobs/sweep.py", "space.optim.lrr={choice: [1]}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and "error: space.optim.lrr" in done.stderr
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in loaded and not loaded & {"ray", "torch"}
