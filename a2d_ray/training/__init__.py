"""Ray Train + DeepSpeed around the diffusion objectives. `build_trainer` is the way in."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "build_trainer":
        raise AttributeError(f"module 'a2d_ray.training' has no attribute {name!r}")
    from a2d_ray.training.trainer import build_trainer

    return build_trainer
