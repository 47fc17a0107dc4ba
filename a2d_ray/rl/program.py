"""The program of ``jobs/rl.py``."""

from typing import Any

from a2d_ray.config import TrainConfig
from a2d_ray.training.program import run_training


def run_rl() -> None:
    """Trains as the command line says, prints the outcome, and exits with its code."""
    run_training("rl", _build)


def _build(config: TrainConfig) -> Any:
    from a2d_ray.rl.trainer import build_rl_trainer

    return build_rl_trainer(config)
