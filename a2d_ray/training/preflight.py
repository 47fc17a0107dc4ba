"""What can be known to fail before Ray starts."""

import importlib.util
import os
import tempfile
from pathlib import Path

from a2d_ray.config import OptionError, RunSection, TrainConfig
from a2d_ray.data.sources.mixture import check_spec
from a2d_ray.models.checkpoint import check_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.runs.cluster import check_resources, wants_gpu
from a2d_ray.runs.storage import RunDirectory


def check_run(config: TrainConfig) -> Contract:
    """Checks model, data, directories and resources of a run.

    Returns:
        The contract of the model that training starts from.

    Raises:
        OptionError: the key, the value and the fix.
    """
    contract = _check_model(config.model.path)
    _check_objective(config, contract)
    if config.model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            "model.load_in_4bit",
            True,
            "needs bitsandbytes, which is not installed",
            "pip install bitsandbytes (CUDA), or set it to false",
        )
    check_spec(config.data.spec)
    check_storage(config.run)
    check_writable("data.packed_path", config.data.packed_path)
    check_resources(config.scaling, use_gpu=wants_gpu(config.scaling))
    return contract


def check_storage(run: RunSection) -> RunDirectory:
    """Refuses an unwritable storage path, and a used name without `run.resume`."""
    if "://" not in run.storage_path:
        check_writable("run.storage_path", run.storage_path)
    directory = RunDirectory.of(run.storage_path, run.name)
    if directory.exists() and not run.resume:
        raise OptionError(
            "run.name",
            run.name,
            f"is in use ({directory.path} exists)",
            "set run.resume=true to continue that run, or choose another run.name",
        )
    return directory


def check_writable(key: str, path: str) -> None:
    """Makes the directory and writes into it.

    Raises:
        OptionError: names `key`.
    """
    if "://" in path:
        raise OptionError(key, path, "is a URI", "name a directory on a local or shared disk")
    directory = Path(path).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OptionError(
            key,
            path,
            f"is not a writable directory ({os.strerror(error.errno or 0)})",
            f"choose another {key}, or make that one writable",
        ) from None


def _check_model(path: str) -> Contract:
    try:
        return check_checkpoint(path)
    except ValueError as error:
        raise OptionError(
            "model.path",
            path,
            f"cannot be used ({error})",
            "it takes an A2D checkpoint, as jobs/convert.py and the training jobs write: a "
            "directory or a Hub id",
        ) from None


def _check_objective(config: TrainConfig, contract: Contract) -> None:
    trained = contract.objective
    wanted = config.objective.name
    if trained not in (None, wanted) and not config.model.change_objective:
        raise OptionError(
            "model.path",
            config.model.path,
            f"was trained with objective {trained}, this job trains {wanted}",
            f"use jobs/sft_{trained}.py, or set model.change_objective=true",
        )
    shift = contract.right_shift_logits
    if trained is not None and shift != config.objective.right_shift_logits:
        raise OptionError(
            "model.path",
            config.model.path,
            f"was trained with right_shift_logits={shift}",
            f"set objective.right_shift_logits={str(shift).lower()}",
        )
