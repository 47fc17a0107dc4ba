"""The program of the training jobs; they differ in the file that lies under the user's."""

from collections.abc import Callable
from typing import Any

from a2d_ray.cli import load_config
from a2d_ray.config import TrainConfig
from a2d_ray.terminal.streams import say


def main(name: str) -> None:
    """Trains as the command line says, prints the outcome, and exits with its code.

    Args:
        name: of the job.
    """
    config = load_config(TrainConfig, name)
    trainer = _builder(name)(config)
    outcome = trainer.outcome(trainer.fit())
    say(outcome.text)
    raise SystemExit(outcome.exit_code)


def _builder(name: str) -> Callable[[TrainConfig], Any]:
    if name == "rl":
        from a2d_ray.rl.trainer import build_rl_trainer

        return build_rl_trainer
    from a2d_ray.training.trainer import build_trainer

    return build_trainer
