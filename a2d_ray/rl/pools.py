"""Where roll-outs are drawn: in the training workers, or in actors beside them.

Both draw the same answers. `draw` is collective: every rank asks for all requests of a step, and
gets all roll-outs.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.generation.engine.request import Request
from a2d_ray.rl.actors import Assignment, RolloutActors
from a2d_ray.rl.worker import Draw, Rollout, RolloutWorker
from a2d_ray.training.engine import whole_weights
from a2d_ray.training.ranks import Ranks


class ColocatedPool:
    """Every rank draws whole groups, its share of them, with a worker in its own process.

    Args:
        config: the resolved training configuration.
        ranks: this rank.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self._ranks = ranks
        self._worker = RolloutWorker(config.model_dump(mode="json"), str(ranks.device))
        self.figures: dict[str, float] = {}

    def publish(self, engine: Any, version: int) -> None:
        """Gives the worker the weights of the model in training. Collective."""
        weights = trained_weights(engine, is_kept=True)
        self._worker.load(weights, version)
        size = sum(value.nbytes for value in weights.values())
        self.figures = {"rl/weights_mb": size / 1e6}

    def submit(self, key: int, requests: Sequence[Request], group_size: int) -> None:
        """Nothing: what is asked is drawn when it is needed."""

    def draw(self, key: int, requests: Sequence[Request], group_size: int) -> list[Rollout]:
        """Roll-outs of all requests, in their order. Collective.

        Args:
            key: of the step; not needed here.
            requests: groups one after the other.
            group_size: requests of a group.
        """
        num_groups = len(requests) // group_size
        per_rank = -(-num_groups // self._ranks.world) * group_size
        start = self._ranks.rank * per_rank
        mine = requests[start : start + per_rank]
        draw = self._worker.draw(mine) if mine else Draw(rollouts=[], load_s=0.0, draw_s=0.0)
        draws: list[Any] = [draw]
        if self._ranks.world > 1:
            draws = [None] * self._ranks.world
            dist.all_gather_object(draws, draw)
        self.figures |= _seconds(draws)
        return [rollout for each in draws for rollout in each.rollouts]


class SeparatePool:
    """Rank 0 asks actors, and tells the other ranks.

    Args:
        config: the resolved training configuration.
        ranks: this rank.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self._ranks = ranks
        self.actors = RolloutActors(config) if ranks.is_first else None
        self._submitted: dict[int, list[Assignment]] = {}
        self.figures: dict[str, float] = {}

    def publish(self, engine: Any, version: int) -> None:
        """Sends the weights of the model in training to the actors. Collective."""
        started = time.perf_counter()
        weights = trained_weights(engine, is_kept=self._ranks.is_first)
        if self.actors is not None:
            size = self.actors.publish(weights, version)
            self.figures = {
                "rl/weights_mb": size / 1e6,
                "time/weights_s": time.perf_counter() - started,
            }

    def submit(self, key: int, requests: Sequence[Request], group_size: int) -> None:
        """Has requests drawn with the weights of the last `publish`.

        Args:
            key: of the step, for `draw`.
            requests: groups one after the other.
            group_size: requests of a group.
        """
        if self.actors is not None:
            self._submitted[key] = self.actors.submit(requests, group_size)

    def draw(self, key: int, requests: Sequence[Request], group_size: int) -> list[Rollout]:
        """Roll-outs of all requests, in their order; those of `submit`, if any. Collective."""
        rollouts: list[Rollout] = []
        if self.actors is not None:
            assignments = self._submitted.pop(key, None)
            assignments = assignments or self.actors.submit(requests, group_size)
            draws = self.actors.collect(assignments)
            self.figures |= _seconds(draws)
            rollouts = [rollout for draw in draws for rollout in draw.rollouts]
        return from_first(rollouts, self._ranks)


def _seconds(draws: Sequence[Draw]) -> dict[str, float]:
    """Of the slowest worker."""
    return {
        "time/load_s": max(draw.load_s for draw in draws),
        "time/draw_s": max(draw.draw_s for draw in draws),
    }


def from_first(value: Any, ranks: Ranks) -> Any:
    """What rank 0 holds, on every rank. Collective."""
    if ranks.world == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def trained_weights(engine: Any, *, is_kept: bool) -> dict[str, Tensor]:
    """The weights that training changes, by the plain model's names. Collective under ZeRO-3.

    Args:
        engine: DeepSpeed's engine around the module.
        is_kept: whether this rank wants them; others get an empty mapping.
    """
    weights = whole_weights(engine, is_kept=is_kept)
    model = engine.module.model
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    return {name: weights[name] for name in names} if weights else {}
