"""The program of the training jobs; they differ in the file that lies under the user's."""

import sys
from collections.abc import Callable
from typing import Any

from a2d_ray.cli import load_config, run
from a2d_ray.config import TrainConfig


def run_training(job_name: str, build: Callable[[TrainConfig], Any] | None = None) -> None:
    """Trains as the command line says, prints the outcome, and exits with its code.

    Args:
        job_name: whose file lies under the user's.
        build: makes the trainer; None: `build_trainer`.
    """

    def train() -> None:
        config = load_config(TrainConfig, job_name)
        trainer = (build or _build)(config)
        outcome = trainer.outcome(trainer.fit())
        sys.stdout.write(f"{outcome.text}\n")
        raise SystemExit(outcome.exit_code)

    run(train)


def _build(config: TrainConfig) -> Any:
    from a2d_ray.training.trainer import build_trainer

    return build_trainer(config)
