"""A loaded model and a configuration -> the module that is trained."""

from typing import Any

import torch

from a2d_ray.config import ModelSection, TrainConfig
from a2d_ray.models.checkpoint import Checkpoint
from a2d_ray.models.device import resolve_dtype
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.objective import loss_spec
from a2d_ray.training.optim import freeze_below


def build_module(loaded: Checkpoint, config: TrainConfig, device: torch.device) -> DiffusionModule:
    """The trained module; layers are frozen, checkpointed and compiled as configured.

    Args:
        loaded: float32 checkpoint on `device`.
        config: of the run.
        device: where it trains; `model.dtype: auto` depends on it.

    Raises:
        OptionError: more trainable layers than the model has.
    """
    prepare_layers(loaded.model, config.model)
    return DiffusionModule(
        loaded.model.train(),
        loss_spec(config.objective, mask_id=loaded.contract.mask_token_id),
        is_causal_clean=config.objective.clean_attention == "causal",
        compute_dtype=resolve_dtype(config.model.dtype, device),
    )


def prepare_layers(model: Any, section: ModelSection) -> None:
    """Freezes, checkpoints and compiles layers as the configuration asks."""
    if section.trainable_layers is not None:
        freeze_below(model, section.trainable_layers)
    if section.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if section.compile:
        for layer in model.model.layers:
            layer.compile()
