"""How many training steps this machine makes in a given time: measured on the run itself."""

import shutil
from pathlib import Path
from typing import Any

from a2d_ray.config import ScheduleSection, TrainConfig
from a2d_ray.runs.status import run_status

TIMED_STEPS = 5  # their median; the first one warms up
MIN_STEPS = 20
MAX_STEPS = 2000


def choose_steps(config: TrainConfig, minutes: float) -> dict[str, Any]:
    """Steps that fit into `minutes`: the run's first few are made, and timed, in a place beside it.

    Needs a running Ray.

    Args:
        config: the training run; its number of steps is not read.
        minutes: time to aim for.

    Returns:
        ``steps``, and the measured ``seconds_per_step``.
    """
    from a2d_ray.training.trainer import build_trainer

    run = config.run.model_copy(update={"name": "timing"})
    schedule = ScheduleSection(max_steps=TIMED_STEPS, eval_steps=0, save_steps=0)
    place = Path(run.storage_path) / run.name
    shutil.rmtree(place, ignore_errors=True)
    build_trainer(config.model_copy(update={"run": run, "schedule": schedule})).fit()
    seconds = run_status(run.storage_path, run.name).step_s
    assert seconds is not None, "a run that ended has steps"
    shutil.rmtree(place)
    return {"steps": steps_within(minutes, seconds), "seconds_per_step": seconds}


def steps_within(minutes: float, seconds_per_step: float) -> int:
    """Whole steps, 20 to 2,000, that fit into `minutes`."""
    return min(max(int(60 * minutes / seconds_per_step), MIN_STEPS), MAX_STEPS)
