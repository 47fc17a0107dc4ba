"""What can be known to fail before Ray starts."""

import importlib.util

from a2d_ray.config import OptionError, RunSection, ScalingSection, TrainConfig
from a2d_ray.config.commands import command_of
from a2d_ray.config.errors import shown
from a2d_ray.data.sources.mixture import check_spec
from a2d_ray.models.checkpoint import check_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.runs.resources import Share, available_resources, check_room, wants_gpu
from a2d_ray.runs.storage import RunDirectory, check_writable
from a2d_ray.training.toolchain import check_gpus


def check_run(config: TrainConfig) -> Contract:
    """Checks model, data, directories and resources of a run.

    Returns:
        The contract of the model that training starts from.

    Raises:
        OptionError: the key, the value and the fix.
    """
    contract = _check_model(config.model.path)
    _check_objective(config, contract)
    _check_gated(config, contract)
    if config.model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            "model.load_in_4bit",
            True,
            "needs bitsandbytes, which is not installed",
            "pip install bitsandbytes (CUDA), or set it to false",
        )
    _check_deepspeed(config)
    check_gpus(config.scaling, config.model.dtype)
    check_spec(config.data.spec)
    check_storage(config.run)
    check_writable("data.packed_path", config.data.packed_path)
    _check_workers(config.scaling)
    return contract


def _check_deepspeed(config: TrainConfig) -> None:
    """Asks DeepSpeed about its section. It loads slowly, and a stage alone was checked already."""
    given = set(config.deepspeed) | set(config.deepspeed["zero_optimization"])
    if given != {"zero_optimization", "stage"}:
        from a2d_ray.training.deepspeed_options import check_deepspeed

        check_deepspeed(config)


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


def _check_workers(scaling: ScalingSection) -> None:
    """Refuses the least number of workers if there is no room for it."""
    there = available_resources()
    check_room(
        there,
        "scaling.num_workers",
        scaling.world_sizes[0],
        cpus=Share(scaling.cpus_per_worker, "scaling.cpus_per_worker"),
        gpus=Share(int(wants_gpu(scaling)), "set scaling.use_gpu=false"),
        # Ray Data needs one. A Ray that we are going to start gets more than the machine has.
        num_other_cpus=int(there.is_ray),
    )


def _check_model(path: str) -> Contract:
    try:
        return check_checkpoint(path)
    except ValueError as error:
        raise OptionError(
            "model.path",
            path,
            f"cannot be used ({error})",
            f"it takes an A2D checkpoint, as {command_of('convert')} and the training jobs write: "
            "a directory or a Hub id",
        ) from None


def _check_gated(config: TrainConfig, contract: Contract) -> None:
    lora = config.model.lora
    held = contract.gated_adapters
    if held is not None and held != lora:
        raise OptionError(
            "model.path",
            config.model.path,
            "holds gated adapters, which are only trained on as they are",
            " ".join(f"model.lora.{key}={shown(value)}" for key, value in held)
            + ", or start from the checkpoint that they were trained on",
        )
    if lora is not None and lora.noised_only and contract.ar_mode is None:
        raise OptionError(
            "model.lora.noised_only",
            True,
            f"keeps an AR mode, and {config.model.path} has none (its contract says ar_mode: null)",
            "convert the AR model again, or start from a run with objective.ar_loss_weight=1",
        )


def _check_objective(config: TrainConfig, contract: Contract) -> None:
    trained = contract.objective
    wanted = config.objective.name
    if trained not in (None, wanted) and not config.model.change_objective:
        raise OptionError(
            "model.path",
            config.model.path,
            f"was trained with objective {trained}, this job trains {wanted}",
            f"use {command_of(f'sft_{trained}')}, or set model.change_objective=true",
        )
    shift = contract.right_shift_logits
    if trained is not None and shift != config.objective.right_shift_logits:
        raise OptionError(
            "model.path",
            config.model.path,
            f"was trained with right_shift_logits={shift}",
            f"set objective.right_shift_logits={str(shift).lower()}",
        )
