"""`build_trainer`: configuration -> a Ray Train TorchTrainer that is ready to fit."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml
from ray.data import ExecutionOptions
from ray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from a2d_ray.cli import to_yaml
from a2d_ray.config import OptionError, ScalingSection, TrainConfig
from a2d_ray.config.commands import command_of
from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.data.pipeline import prepare
from a2d_ray.runs.cluster import start_ray
from a2d_ray.runs.environment import worker_env
from a2d_ray.runs.resources import wants_gpu
from a2d_ray.runs.settings import check_same_settings
from a2d_ray.runs.storage import (
    PLAN_FILE,
    RUN_CONFIG_FILE,
    RunDirectory,
    absolute_if_local,
    absolute_path,
)
from a2d_ray.training.controller import remaining_rows, train_loop
from a2d_ray.training.plan import TrainingPlan
from a2d_ray.training.preflight import check_run
from a2d_ray.training.progress import progress_bar
from a2d_ray.training.stopping import STOP_FILE, stop_on_signals

_log = logging.getLogger(__name__)

_FREE_TO_CHANGE = ("run", "scaling", "wandb")  # a resumed run may differ in these, but the seed


EXIT_UNFINISHED = 75  # sysexits' EX_TEMPFAIL: run the command again


@dataclass(frozen=True)
class RunOutcome:
    """How a command ends.

    Attributes:
        text: for the user.
        exit_code: 0, or EXIT_UNFINISHED for a run that saved and stopped early.
    """

    text: str
    exit_code: int


class DiffusionTrainer(TorchTrainer):
    """A TorchTrainer whose `fit` shows a progress bar, and saves and stops on SIGTERM or Ctrl-C."""

    plan: TrainingPlan
    run_directory: RunDirectory

    def fit(self) -> Result:
        """Trains, or continues a run that was interrupted; see TorchTrainer.fit."""
        name = self.plan.config.run.name
        with (
            stop_on_signals(self.run_directory),
            progress_bar(self.run_directory, self.plan.num_steps, name),
        ):
            return super().fit()

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray's own would end the run without a checkpoint; `fit` has one."""

    def outcome(self, result: Result) -> RunOutcome:
        """What a run has come to: finished, or stopped early and to be resumed."""
        metrics = result.metrics or {}
        step = int(metrics.get("step", 0))
        where = f"checkpoint: {result.checkpoint.path}" if result.checkpoint else "no checkpoint"
        if step == self.plan.num_steps:
            names = {"nelbo": "held-out NELBO", "accepted_length": "accepted draft length"}
            figures = [
                f"{text} {metrics[key]:.3f}" for key, text in names.items() if key in metrics
            ]
            return RunOutcome(f"{', '.join([f'{step} steps', *figures])}\n{where}", 0)
        return RunOutcome(
            f"stopped at step {step} of {self.plan.num_steps}; {where}\n"
            "go on with the same command and run.resume=true",
            EXIT_UNFINISHED,
        )


def build_trainer(
    config: TrainConfig, *, callbacks: Sequence[UserCallback] = ()
) -> DiffusionTrainer:
    """A trainer for continual pre-training or SFT, with MDLM or BD3LM.

    Checks everything that can be checked, starts or joins Ray, packs the mixture (or finds it
    packed), and settles the number of steps. `fit()` then trains, or continues a run that was
    interrupted, and returns Ray's `Result`. The run's directory, storage_path/name, holds
    config.yaml, metrics.jsonl, loss.png and the checkpoints, at last ``checkpoint-final``.

    Args:
        config: the resolved training configuration.
        callbacks: Ray Train's, called on the driver for every report (a sweep's trial has one).

    Raises:
        OptionError: what is wrong: the key, the value and the fix.
    """
    if config.rl is not None:
        fix = f"use {command_of('rl')}, or leave it out"
        raise OptionError("rl", "...", "is not for supervised training", fix)
    deadline = run_deadline(config)
    check_run(config)
    directory = resumable_directory(config)
    scaling = config.scaling
    start_ray(scaling.world_sizes[-1] * scaling.cpus_per_worker + 2)
    packed = prepare(config.data, config.objective, config.model.path)
    plan = TrainingPlan(
        with_absolute_model(config), str(packed.path), num_steps(config, packed), deadline
    )
    settle(config, plan, directory)
    storage_path = absolute_path(config.run.storage_path)
    return make_trainer(
        train_loop,
        plan,
        directory,
        callbacks=callbacks,
        # Train gives datasets execution options of its own: without these, rows change places.
        dataset_config=DataConfig(
            execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
        ),
        datasets={"train": partial(remaining_rows, plan.to_dict(), storage_path)},
    )


def make_trainer(
    loop: Callable[[dict[str, Any]], None],
    plan: TrainingPlan,
    directory: RunDirectory,
    *,
    callbacks: Sequence[UserCallback] = (),
    **data: Any,
) -> DiffusionTrainer:
    """The trainer of a settled plan.

    Args:
        loop: what each worker runs.
        plan: what the driver has settled.
        directory: where the run writes.
        callbacks: Ray Train's.
        data: `TorchTrainer`'s options of its data.
    """
    config = plan.config
    use_gpu = wants_gpu(config.scaling)
    directory.delete(STOP_FILE)
    workers = config.scaling.world_sizes[-1]
    size = (config.run.name, plan.num_steps, config.batch.rows, workers)
    _log.info("%s: %d steps of %d rows; workers: %d", *size)
    trainer = DiffusionTrainer(
        loop,
        train_loop_config=plan.to_dict(),
        scaling_config=ScalingConfig(
            num_workers=_worker_range(config.scaling),  # type: ignore[arg-type]  # mypy sees V1's
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.scaling.cpus_per_worker},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees V1's
            name=config.run.name,
            storage_path=absolute_path(config.run.storage_path),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=config.scaling.max_failures, controller_failure_limit=3
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=config.schedule.keep_last),
            worker_runtime_env={"env_vars": training_env(use_gpu)},
            callbacks=list(callbacks),  # type: ignore[arg-type]
        ),
        **data,
    )
    trainer.plan = plan
    trainer.run_directory = directory
    return trainer


def training_env(use_gpu: bool) -> dict[str, str]:
    """Variables of training workers.

    DeepSpeed chooses its accelerator when it is imported, by what the machine has, and Ray hides no
    GPU from a worker that asked for none. So it is told before the process starts.
    """
    accelerator = os.environ.get("DS_ACCELERATOR", "" if use_gpu else "cpu")
    return worker_env() | ({"DS_ACCELERATOR": accelerator} if accelerator else {})


def run_deadline(config: TrainConfig) -> float | None:
    """Unix time before which a command that starts now saves and stops; None: there is none."""
    limit = config.schedule.max_duration
    return None if limit is None else time.time() + limit


def num_steps(config: TrainConfig, packed: PackedSet) -> int:
    """Optimizer steps of the run.

    Raises:
        OptionError: fewer rows than one step takes.
    """
    if config.schedule.max_steps is not None:
        return config.schedule.max_steps
    rows = packed.num_rows("train") * config.schedule.epochs
    if rows < config.batch.rows:
        raise OptionError(
            "batch.rows",
            config.batch.rows,
            f"exceeds the {rows:g} packed rows of schedule.epochs={config.schedule.epochs:g}",
            f"set batch.rows={max(1, math.floor(rows))} or lower, "
            f"schedule.epochs={math.ceil(config.batch.rows / packed.num_rows('train'))} or more, "
            "or schedule.max_steps",
        )
    return math.floor(rows / config.batch.rows)


def _worker_range(scaling: ScalingSection) -> int | tuple[int, int]:
    """The number of workers in Ray Train's form."""
    low = scaling.world_sizes[0]
    high = scaling.world_sizes[-1]
    return low if low == high else (low, high)


def resumable_directory(config: TrainConfig) -> RunDirectory:
    """The run's directory.

    Raises:
        OptionError: it holds another run: other data, objective, optimizer, schedule or seed.
    """
    directory = RunDirectory.of(absolute_path(config.run.storage_path), config.run.name)
    stored = directory.read(RUN_CONFIG_FILE)
    if stored is None:
        return directory
    ours = config.model_dump(mode="json")
    theirs = yaml.safe_load(stored)
    for values in (ours, theirs):
        values["schedule"].pop("max_duration", None)  # of one command, no part of what a run is
        seed = values["run"]["seed"]
        for section in _FREE_TO_CHANGE:
            values.pop(section, None)
        values["run"] = {"seed": seed}
    check_same_settings(ours, theirs, field="run.name", value=config.run.name)
    return directory


def settle(config: TrainConfig, plan: TrainingPlan, directory: RunDirectory) -> None:
    """Writes down what a run is, or finds that a resumed one is still the same.

    Raises:
        OptionError: the mixture has changed since the run was started.
    """
    stored = directory.read(PLAN_FILE)
    settled = {"packed_path": plan.packed_path, "num_steps": plan.num_steps}
    if stored is None:
        directory.write(RUN_CONFIG_FILE, to_yaml(config).encode())
        directory.write(PLAN_FILE, json.dumps(settled).encode())
        return
    check_same_settings(
        settled,
        json.loads(stored),
        field="run.name",
        value=config.run.name,
        fix="files of data.spec, tokenizer or packages have changed since: bring them back",
    )


def with_absolute_model(config: TrainConfig) -> TrainConfig:
    """The configuration for processes that work in other directories."""
    path = absolute_if_local(config.model.path)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
