"""Reinforcement learning with verifiable rewards: python jobs/rl.py [CONFIG.yaml] [k=v ...]."""

from a2d_ray.config import TrainConfig
from a2d_ray.training.program import run_training


def build(config: TrainConfig) -> object:
    from a2d_ray.rl import build_rl_trainer

    return build_rl_trainer(config)


if __name__ == "__main__":
    run_training("rl", build)
