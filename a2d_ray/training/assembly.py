"""A loaded model and a configuration -> the module that is trained."""

from pathlib import Path
from typing import Any

import torch

from a2d_ray.config import ModelSection, OptionError, TrainConfig
from a2d_ray.models.adapters import (
    ADAPTER_WEIGHTS,
    GATED_WEIGHTS,
    add_adapters,
    restore_adapters,
)
from a2d_ray.models.checkpoint import Checkpoint, load_checkpoint
from a2d_ray.models.device import resolve_dtype
from a2d_ray.models.directories import find_directory
from a2d_ray.models.experts import has_balance_loss
from a2d_ray.models.gated_lora import add_gated_adapters
from a2d_ray.models.parts import layers_of, learned_positions
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.objective import loss_spec
from a2d_ray.training.optim import freeze_below


def load_model(
    config: TrainConfig, device: torch.device, resumed: Path | None
) -> tuple[Checkpoint, Any]:
    """The float32 checkpoint that is trained, with adapters where they are configured.

    Args:
        config: the resolved training configuration.
        device: where it trains.
        resumed: checkpoint directory that the run goes on from; None: `model.path`.

    Returns:
        The checkpoint, and peft's view of its model; None: no adapters.
    """
    lora = config.model.lora
    path = config.model.path
    loaded = load_checkpoint(
        path if resumed is None or lora is not None else resumed,
        dtype=torch.float32,
        device=device,
        in_4bit=config.model.load_in_4bit,
        with_gated=False,
    )
    if lora is None:
        return loaded, None
    add = add_gated_adapters if lora.noised_only else add_adapters
    mask_id = loaded.contract.mask_token_id
    adapted = add(loaded.model, lora, mask_id=mask_id, base=path, seed=config.run.seed)
    if resumed is None and loaded.contract.gated_adapters is not None:
        resumed = find_directory(path, weights=True)  # a run that trains them on
    if resumed is not None:
        restore_adapters(
            adapted, resumed / (GATED_WEIGHTS if lora.noised_only else ADAPTER_WEIGHTS)
        )
    return loaded, adapted


def build_module(loaded: Checkpoint, config: TrainConfig, device: torch.device) -> DiffusionModule:
    """The trained module; layers are frozen, checkpointed and compiled as configured.

    Args:
        loaded: float32 checkpoint on `device`.
        config: the resolved training configuration.
        device: where it trains; `model.dtype: auto` depends on it.

    Raises:
        OptionError: more trainable layers than the model has.
    """
    prepare_layers(loaded.model, config.model, device)
    num_positions = learned_positions(loaded.model)
    if num_positions is not None and config.data.max_length > num_positions:
        raise OptionError(
            "data.max_length",
            config.data.max_length,
            f"exceeds the {num_positions} positions that the model has learned",
            f"lower it to {num_positions}",
        )
    router_weight = config.objective.router_loss_weight
    if router_weight and not has_balance_loss(loaded.model):
        raise OptionError(
            "objective.router_loss_weight",
            router_weight,
            f"has no use: {loaded.model.config.model_type} has no load-balancing loss",
            "set it to 0",
        )
    return DiffusionModule(
        loaded.model.train(),
        loss_spec(
            config.objective,
            mask_id=loaded.contract.mask_token_id,
            is_compiled=compiles(config.model, device),
        ),
        is_causal_clean=config.objective.clean_attention == "causal",
        compute_dtype=resolve_dtype(config.model.dtype, device),
        router_weight=router_weight,
    )


def prepare_layers(model: Any, section: ModelSection, device: torch.device) -> None:
    """Freezes, checkpoints and compiles layers as the configuration asks.

    Args:
        model: A2D model with head.
        section: of the configuration.
        device: where it trains; `compile: auto` depends on it.
    """
    if section.trainable_layers is not None:
        freeze_below(model, section.trainable_layers)
    if section.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if compiles(section, device):
        for layer in layers_of(model):
            layer.compile()


def compiles(section: ModelSection, device: torch.device) -> bool:
    """Whether layers and what follows the logits are compiled; `auto`: on GPUs, without LoRA."""
    if section.compile == "auto":
        return device.type == "cuda" and section.lora is None
    return section.compile
