"""What a loss is divided by: one number per optimizer step, or a norm of the public recipe."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise

Norm = Literal["step", "token", "sequence", "batch"]


def normalise(noise: Noise, layout: Layout, norm: Norm) -> Noise:
    """The noise with weights that make the loss of the micro-batch normalised.

    ``token`` is sum / targets of the micro-batch; ``sequence`` the mean over rows of sum_i / n_i,
    where row i has n_i targets; ``batch`` sum / rows. ``step`` leaves the sum: all micro-batches
    of an optimizer step share its denominator, see `denominator`.

    Source: dLLM / Tiny-A2D, arXiv 2602.22661 (all but ``step``).
    """
    if norm == "step":
        return noise
    num_rows = layout.ids_RT.shape[0]
    targets_R1 = layout.is_target_RT.sum(1, keepdim=True)
    divisor: Tensor | int = num_rows
    if norm == "token":
        divisor = targets_R1.sum().clamp(min=1)
    elif norm == "sequence":
        divisor = targets_R1.clamp(min=1) * num_rows
    return replace(noise, weight_RT=noise.weight_RT / divisor)


def denominator(layout: Layout, norm: Norm) -> Tensor:
    """What a micro-batch adds to the denominator of its step: its targets, or itself (int64)."""
    return layout.num_targets if norm == "step" else torch.ones((), dtype=torch.int64)
