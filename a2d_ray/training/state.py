"""Checkpoints: Hugging Face weights, and optimizer state that knows no world size.

    checkpoint_00000500/   config.json, model.safetensors (fp32), tokenizer, ...: load() reads it
      state/progress.json  {step, rows}
      state/exp_avg.safetensors, exp_avg_sq.safetensors
      state/config.yaml    the resolved configuration

Moments are stored whole, by parameter name, so a run resumes with any number of workers and any
ZeRO stage. Noise and data order are functions of the step: there is no random state.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state
from safetensors.torch import load_file, save_file
from torch import Tensor

from a2d_ray.training.engine import engine_stage, is_partitioned

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE_DIRECTORY = "state"


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        rows: packed rows consumed, over all ranks.
    """

    step: int
    rows: int

    @classmethod
    def read(cls, checkpoint: Path) -> "RunProgress":
        """The progress of a checkpoint directory."""
        return cls(**json.loads((checkpoint / STATE_DIRECTORY / "progress.json").read_text()))


def save_state(
    engine: Any, directory: Path, progress: RunProgress, *, is_writer: bool
) -> Callable[[], None]:
    """Gathers moments; what it returns writes them and the progress below `directory`.

    Collective: every rank must call it. Writing is apart, so that a full disk on the writer leaves
    no other rank waiting.
    """
    _link_moments(engine)
    moments = {key: _gather(engine, key, is_kept=is_writer) for key in MOMENTS}

    def write() -> None:
        target = directory / STATE_DIRECTORY
        target.mkdir(parents=True, exist_ok=True)
        for key, values in moments.items():
            save_file(values, target / f"{key}.safetensors")
        (target / "progress.json").write_text(json.dumps(asdict(progress)))

    return write


def restore_state(engine: Any, checkpoint: Path) -> None:
    """Puts the moments and the step count of a checkpoint into a fresh engine's optimizer."""
    step = RunProgress.read(checkpoint).step
    optimizer = _base_optimizer(engine)
    for parameter in _stepped(engine, optimizer):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            **{key: torch.zeros_like(parameter) for key in MOMENTS},
        }
    _link_moments(engine)
    for key in MOMENTS:
        moments = load_file(checkpoint / STATE_DIRECTORY / f"{key}.safetensors")
        for name, parameter in _trained(engine):
            _put(engine, parameter, key, moments[name].to(parameter.device))


def _trained(engine: Any) -> list[tuple[str, Tensor]]:
    return [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer, which ZeRO wraps."""
    optimizer = engine.optimizer
    while not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _stepped(engine: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that the optimizer steps: ZeRO-3 hands them over only while it steps."""
    if is_partitioned(engine):
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [p for group in optimizer.param_groups for p in group["params"]]


def _link_moments(engine: Any) -> None:
    """Tells each parameter where ZeRO 1/2 keeps its moments.

    DeepSpeed does so once, after the step of its first parameter group, when the other groups
    have no moments yet; those then look as if they had none.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _is_sharded(engine: Any) -> bool:
    return engine_stage(engine) > 0


def _gather(engine: Any, key: str, *, is_kept: bool) -> dict[str, Tensor]:
    """One moment of every parameter, whole, by name."""
    moments = {}
    for name, parameter in _trained(engine):
        if _is_sharded(engine):
            value = safe_get_full_optimizer_state(parameter, key)
        else:
            value = _base_optimizer(engine).state[parameter][key]
        if is_kept:
            moments[name] = value.detach().cpu().contiguous()
    return moments


def _put(engine: Any, parameter: Tensor, key: str, value: Tensor) -> None:
    if _is_sharded(engine):
        safe_set_full_optimizer_state(parameter, value, key)
    else:
        _base_optimizer(engine).state[parameter][key].copy_(value)
