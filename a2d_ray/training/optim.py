"""AdamW groups, frozen layers, and what changes over the steps: lr, corruption, block sizes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from a2d_ray.config import OptimSection, OptionError
from a2d_ray.models.parts import final_norm_of, layers_of


def freeze_below(model: Any, num_layers: int) -> None:
    """Leaves only the last `num_layers` layers and the final norm trainable.

    Gradients end where training begins, so lower layers cost no backward pass, no reduction and
    no optimizer state. Embeddings stay as they are, the mask token's too.

    Args:
        model: A2D model with head.
        num_layers: layers that are trained, from the top.

    Raises:
        OptionError: more than the model has.
    """
    layers = layers_of(model)
    if num_layers > len(layers):
        raise OptionError(
            "model.trainable_layers",
            num_layers,
            f"exceeds the model's {len(layers)} layers",
            "lower it, or set it to null for all of them",
        )
    model.requires_grad_(False)
    norm = final_norm_of(model)
    for module in (*layers[len(layers) - num_layers :], *([] if norm is None else [norm])):
        module.requires_grad_(True)


def make_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, never on embeddings (they hold the mask token)."""
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_embedding = id(parameter) in embeddings or ".trainable_tokens_" in name  # peft's
            is_decayed = parameter.dim() >= 2 and not is_embedding
            (decayed if is_decayed else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def learning_rate(step: int, num_steps: int, optim: OptimSection) -> float:
    """Learning rate of step 0..num_steps-1: linear warm-up, then the schedule.

    Source: WSD (warm-up, stable, decay) after MiniCPM, arXiv 2404.06395.
    """
    num_warmup = math.ceil(optim.warmup * num_steps)
    if step < num_warmup:
        return optim.lr * (step + 1) / num_warmup
    floor = optim.min_lr_fraction
    return optim.lr * (floor + (1 - floor) * _shape(step, num_warmup, num_steps, optim))


def _shape(step: int, num_warmup: int, num_steps: int, optim: OptimSection) -> float:
    """What is left of the way from the peak to the floor, 1..0, behind the warm-up."""
    num_decay = num_steps - num_warmup
    if optim.schedule == "wsd":
        num_decay = min(num_decay, math.ceil(optim.decay * num_steps))
    progress = max(0.0, (step - (num_steps - num_decay)) / max(1, num_decay))
    return SHAPES[optim.schedule](progress)


SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "wsd": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""What is left of the way to the floor, by how much of the decay is over; keys as in `optim`."""


def corruption_limit(step: int, num_steps: int, warmup: float) -> float:
    """Largest corrupted share of a block in this step: rises linearly to 1 over the warm-up."""
    num_warmup = math.ceil(warmup * num_steps)
    return min(1.0, (step + 1) / (num_warmup + 1))


def open_block_sizes(
    step: int, num_steps: int, sizes: tuple[int, ...], growth: float
) -> tuple[int, ...]:
    """Block sizes that documents may draw in this step: the smallest first, all after `growth`.

    Args:
        step, num_steps: steps done so far, and steps of the whole run.
        sizes: all block sizes, ascending.
        growth: share of the steps over which the larger ones join.
    """
    num_growing = math.ceil(growth * num_steps)
    if step >= num_growing:
        return sizes
    return sizes[: 1 + step * len(sizes) // num_growing]
