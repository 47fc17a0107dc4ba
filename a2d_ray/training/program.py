"""The program of the six training jobs; they differ in the file that lies under the user's."""

import sys

from a2d_ray.cli import load_config, run
from a2d_ray.config import TrainConfig


def run_training(job_name: str) -> None:
    """Trains as the command line says, prints the outcome, and exits with its code."""

    def train() -> None:
        config = load_config(TrainConfig, job_name)
        from a2d_ray.training.trainer import build_trainer

        trainer = build_trainer(config)
        outcome = trainer.outcome(trainer.fit())
        sys.stdout.write(f"{outcome.text}\n")
        raise SystemExit(outcome.exit_code)

    run(train)
