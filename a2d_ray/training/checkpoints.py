"""Writing checkpoints: whole or not at all, the last good one kept whatever happens."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode
from safetensors import SafetensorError
from torch import Tensor

from a2d_ray.cli import to_yaml
from a2d_ray.models.adapter_checkpoint import save_adapters, save_gated
from a2d_ray.models.checkpoint import save_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.runs.storage import RunDirectory
from a2d_ray.training.engine import whole_weights
from a2d_ray.training.plan import TrainingPlan
from a2d_ray.training.ranks import Ranks
from a2d_ray.training.state import STATE_DIRECTORY, RunProgress, save_state

FINAL_NAME = "checkpoint-final"
BEST_NAME = "checkpoint-best"
BEST_FILE = "best.json"
_REPORTED = ("nelbo", "accepted_length", "reward")  # held-out figures that sweeps compare


class CheckpointWriter:
    """Registers checkpoints with Ray Train.

    Args:
        plan: settled by the driver for all workers: packed set, number of steps.
        ranks: this rank.
        directory: where the run writes, `storage_path/name`.
        contract: of the model that is trained.
        tokenizer: saved with it.
        adapted: peft's view of the model, whose adapters are saved; None: its weights are.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        ranks: Ranks,
        directory: RunDirectory,
        contract: Contract,
        tokenizer: Any,
        adapted: Any,
    ) -> None:
        self._adapted = adapted
        self._plan = plan
        self._ranks = ranks
        self._directory = directory
        self._contract = contract
        self._tokenizer = tokenizer

    def save(self, engine: Any, step: int, figures: dict[str, float]) -> str | None:
        """Saves and waits until it can be resumed from. Collective.

        Args:
            engine: its weights and moments.
            step: optimizer steps done.
            figures: held-out ones of these weights, by their names in the metrics; empty: they
                were not evaluated.

        Returns:
            None, or why nothing was saved (rank 0 knows; others get an empty text).

        Raises:
            RuntimeError: the last checkpoint of the run cannot be written.
        """
        is_last = step == self._plan.num_steps
        progress = RunProgress(step=step, rows=step * self._plan.config.batch.rows)
        with tempfile.TemporaryDirectory(prefix="a2d-checkpoint-") as scratch:
            path = Path(scratch)
            problem = self._write(engine, path, progress)
            if self._ranks.any(problem is not None):
                if is_last:
                    raise RuntimeError(f"the final checkpoint cannot be saved: {problem}")
                return problem or ""
            metrics: dict[str, float] = {"step": step, "rows": progress.rows}
            metrics |= {k: figures[f"eval/{k}"] for k in _REPORTED if f"eval/{k}" in figures}
            ray.train.report(
                metrics,
                checkpoint=Checkpoint.from_directory(path) if self._ranks.is_first else None,
                checkpoint_dir_name=FINAL_NAME if is_last else f"checkpoint_{step:08d}",
            )
            # report() returns once the files are uploaded; a crash before they are registered
            # would lose them.
            ray.train.get_all_reported_checkpoints(
                consistency_mode=CheckpointConsistencyMode.COMMITTED, timeout_s=60
            )
            if self._ranks.is_first and self._plan.config.schedule.keep_best and figures:
                keep_best(self._directory, path, step, figures["eval/nelbo"])
        return None

    def _write(self, engine: Any, path: Path, progress: RunProgress) -> str | None:
        """Writes a checkpoint into a scratch directory; returns what went wrong on this rank."""
        is_first = self._ranks.is_first
        moments = save_state(engine, path, progress, is_writer=is_first)
        weights = {} if self._adapted else whole_weights(engine, is_kept=is_first)
        if not is_first:
            return None
        try:
            moments()
            self._write_model(engine, path, weights)
            (path / STATE_DIRECTORY / "config.yaml").write_text(to_yaml(self._plan.config))
            return _lack_of_space(self._directory, path)
        except (OSError, SafetensorError) as error:  # safetensors wraps "no space left"
            return f"{path}: {error}"

    def _write_model(self, engine: Any, path: Path, weights: dict[str, Tensor]) -> None:
        tokenizer = self._tokenizer
        contract = self._contract
        model = engine.module.model
        if contract.gated_adapters is not None:
            save_gated(path, model, self._adapted, tokenizer=tokenizer, contract=contract)
            return
        if self._adapted is not None:
            save_adapters(path, self._adapted, tokenizer=tokenizer, contract=contract)
            return
        save_checkpoint(
            path, model=model, tokenizer=tokenizer, contract=contract, state_dict=weights
        )


def _lack_of_space(directory: RunDirectory, path: Path) -> str | None:
    """Whether a local run directory cannot take the checkpoint: half of one helps nobody."""
    if directory.local_path is None:
        return None
    needed = sum(file.stat().st_size for file in path.rglob("*"))
    free = shutil.disk_usage(directory.local_path).free
    if free > needed:
        return None
    return f"{directory.path}: {free >> 20} MiB are free, a checkpoint takes {needed >> 20}"


def keep_best(directory: RunDirectory, path: Path, step: int, nelbo: float) -> None:
    """Makes a checkpoint's model ``checkpoint-best`` if its NELBO is the lowest so far.

    Args:
        directory: where the run writes, `storage_path/name`.
        path: local directory of the checkpoint; its ``state`` is left out.
        step: optimizer steps done.
        nelbo: of this model.
    """
    stored = directory.read(f"{BEST_NAME}/{BEST_FILE}")
    if stored is not None and json.loads(stored)["nelbo"] <= nelbo:
        return
    new = f"{BEST_NAME}.new"
    directory.delete(new)
    for file in path.iterdir():
        if file.is_file():
            target = f"{directory.path}/{new}/{file.name}"
            directory.filesystem.create_dir(f"{directory.path}/{new}", recursive=True)
            pafs.copy_files(str(file), target, destination_filesystem=directory.filesystem)
    directory.write(f"{new}/{BEST_FILE}", json.dumps({"step": step, "nelbo": nelbo}).encode())
    directory.delete(BEST_NAME)
    directory.move(new, BEST_NAME)
