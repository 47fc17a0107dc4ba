"""What Ray Train's controller loads of ours: the data to read on, and the loop by name.

The controller is a process of its own. Torch's, DeepSpeed's and transformers' models are loaded by
its workers alone, so a run starts seconds sooner.
"""

import math
from typing import Any

from ray.data import Dataset
from ray.train import Result

from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.data.pipeline import training_dataset
from a2d_ray.training.plan import TrainingPlan


def train_loop(plan: dict[str, Any]) -> None:
    """The loop of one worker; see `a2d_ray.training.loop`."""
    from a2d_ray.training.loop import run_train_worker

    run_train_worker(plan)


def remaining_rows(plan: dict[str, Any], storage_path: str) -> Dataset:
    """The rows behind the latest checkpoint; Ray Train calls it at every (re)start."""
    whole = TrainingPlan.from_dict(plan)
    config = whole.config
    start = _rows_consumed(f"{storage_path}/{config.run.name}")
    stop = whole.num_steps * config.batch.rows
    return training_dataset(
        PackedSet.open(whole.packed_path),
        start_row=min(start, stop - config.batch.rows),
        stop_row=stop,
        # Blocks are dealt to the ranks in turn: whole ones make up a rank's share at any size.
        rows_per_block=math.gcd(*(config.batch.rows // w for w in config.scaling.world_sizes)),
        seed=config.run.seed,
    )


def _rows_consumed(run_path: str) -> int:
    try:
        result = Result.from_path(run_path)
    except RuntimeError:  # Ray's word for: nothing there yet
        return 0
    return int((result.metrics or {}).get("rows", 0))
