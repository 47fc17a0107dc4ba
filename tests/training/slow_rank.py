"""A training loop whose second rank is slow, for workers to import."""

import time

import ray.train

from a2d_ray.training import loop
from a2d_ray.training.batches import StepBuilder

SLOW_S = 0.4


class SlowBuilder(StepBuilder):
    """Lays its rows out again and again."""

    def build(self, *args, **options):
        deadline = time.perf_counter() + SLOW_S
        while time.perf_counter() < deadline:
            micros = super().build(*args, **options)
        return micros


def train_loop(plan):
    """The real loop, with another builder on rank 1."""
    if ray.train.get_context().get_world_rank() == 1:
        loop.StepBuilder = SlowBuilder
    loop.run_train_worker(plan)
