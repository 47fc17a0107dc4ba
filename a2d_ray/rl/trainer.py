"""`build_rl_trainer`: configuration -> a Ray Train TorchTrainer of reinforcement learning."""

import math
from collections.abc import Sequence

from ray.train import UserCallback

from a2d_ray.config import OptionError, RLSection, TrainConfig
from a2d_ray.config.commands import command_of
from a2d_ray.data.hashing import stable_id
from a2d_ray.models.contract import Contract
from a2d_ray.rl.controller import rl_loop
from a2d_ray.rl.prompts import PROMPTS_FILE, PromptSet, read_prompt_rows
from a2d_ray.rl.rewards import make_reward
from a2d_ray.runs.cluster import start_ray
from a2d_ray.runs.resources import Share, available_resources, check_room
from a2d_ray.training.plan import TrainingPlan
from a2d_ray.training.preflight import check_run
from a2d_ray.training.trainer import (
    DiffusionTrainer,
    make_trainer,
    resumable_directory,
    run_deadline,
    settle,
    with_absolute_model,
)


def build_rl_trainer(
    config: TrainConfig, *, callbacks: Sequence[UserCallback] = ()
) -> DiffusionTrainer:
    """A trainer for reinforcement learning with verifiable rewards.

    Checks everything that can be checked, reads the prompts, starts or joins Ray, and settles the
    number of steps. The run's directory is that of supervised training, with ``prompts.jsonl`` in
    place of a packed set.

    Args:
        config: the resolved training configuration, with its section `rl`.
        callbacks: Ray Train's, called on the driver for every report.

    Raises:
        OptionError: what is wrong: the key, the value and the fix.
    """
    rl = config.rl
    if rl is None:
        raise OptionError("rl", None, "is missing", "set rl.reward.kind, or use a job of its own")
    deadline = run_deadline(config)
    _check_likelihood(rl, check_run(config), config.model.path)
    make_reward(rl.reward)
    directory = resumable_directory(config)
    prompts = read_prompt_rows(config)
    _start(config, rl)
    content = prompts.dump()
    plan = TrainingPlan(
        with_absolute_model(config),
        f"{PROMPTS_FILE} {stable_id(content.decode()):016x}",
        _num_steps(config, prompts),
        deadline,
    )
    settle(config, plan, directory)
    directory.write(PROMPTS_FILE, content)
    return make_trainer(rl_loop, plan, directory, callbacks=callbacks)


def _check_likelihood(rl: RLSection, contract: Contract, path: str) -> None:
    if rl.likelihood == "exact" and contract.ar_mode is None:
        raise OptionError(
            "rl.likelihood",
            rl.likelihood,
            f"needs an AR mode, and {path} has none (its contract says ar_mode: null)",
            "set rl.likelihood=nelbo, or start from a run with objective.ar_loss_weight=1",
        )
    if contract.gated_adapters is not None:
        raise OptionError(
            "model.path",
            path,
            "holds gated adapters, and rl trains the weights that they stand beside",
            f"start from a run of {command_of('sft_speculative')}",
        )


def _start(config: TrainConfig, rl: RLSection) -> None:
    """Starts or joins a Ray with room for the workers and, where they are apart, the actors."""
    scaling = config.scaling
    num_training = scaling.world_sizes[-1] * scaling.cpus_per_worker
    rollout = rl.rollout
    num_drawing = 0
    if rollout.placement == "separate":
        num_drawing = rollout.num_workers * rollout.cpus_per_worker
        there = available_resources()
        check_room(
            there,
            "rl.rollout.num_workers",
            rollout.num_workers,
            cpus=Share(rollout.cpus_per_worker, "lower rl.rollout.cpus_per_worker"),
            gpus=Share(int(rollout.use_gpu is True), "set rl.rollout.use_gpu=false"),
            num_other_cpus=num_training if there.is_ray else 0,
        )
    start_ray(num_training + num_drawing + 2)


def _num_steps(config: TrainConfig, prompts: PromptSet) -> int:
    assert config.rl is not None
    if config.schedule.max_steps is not None:
        return config.schedule.max_steps
    groups = config.batch.rows // config.rl.group_size
    return max(1, math.floor(len(prompts.of("train")) * config.schedule.epochs / groups))
