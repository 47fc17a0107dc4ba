"""The trained module around a tiny model."""

import torch

from a2d_ray.diffusion.objectives import LossSpec
from a2d_ray.training.module import DiffusionModule
from tests.diffusion.test_objectives import MASK


def module_of(model, dtype=torch.float32, *, is_causal_clean=False):
    return DiffusionModule(
        model, LossSpec(mask_id=MASK), is_causal_clean=is_causal_clean, compute_dtype=dtype
    )
