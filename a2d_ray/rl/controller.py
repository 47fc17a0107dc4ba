"""What Ray Train's controller loads of ours: the loop by name, since only workers need torch."""

from typing import Any


def rl_loop(plan: dict[str, Any]) -> None:
    """The loop of one worker; see `a2d_ray.rl.loop`."""
    from a2d_ray.rl.loop import run_rl_worker

    run_rl_worker(plan)
