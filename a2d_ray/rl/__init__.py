"""Reinforcement learning with verifiable rewards: a training step whose rows come from roll-outs.

`prompts` reads what is asked, `order` says which step asks what, `worker` draws answers with an
engine, `actors` and `colocated` say where workers live, `rewards` and `scoring` judge, `credit`
says what each token of a roll-out is to learn, `module` and `loop` learn it. `build_rl_trainer` is
the way in.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "build_rl_trainer":
        raise AttributeError(f"module 'a2d_ray.rl' has no attribute {name!r}")
    from a2d_ray.rl.trainer import build_rl_trainer

    return build_rl_trainer
