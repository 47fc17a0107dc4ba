"""Roll-out workers in Ray actors of their own: weights out, roll-outs back, the dead replaced."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.generation.engine.request import Request
from a2d_ray.rl.worker import Draw, RolloutWorker, to_arrays
from a2d_ray.runs.environment import worker_env
from a2d_ray.runs.resources import available_resources

_log = logging.getLogger(__name__)


@dataclass
class Assignment:
    """Requests that one actor answers.

    Attributes:
        requests: whole groups.
        place: of the actor.
        actor: that answers.
        ref: of its `Draw`.
    """

    requests: Sequence[Request]
    place: int
    actor: Any
    ref: Any


class RolloutActors:
    """Actors that draw; they end with the process that made them.

    An actor does what it is asked in that order, so the weights of a draw are those that were sent
    last before it was submitted.

    Args:
        config: the resolved training configuration.
    """

    def __init__(self, config: TrainConfig) -> None:
        assert config.rl is not None
        self._config = config
        self._rollout = config.rl.rollout
        self._weights: tuple[Any, int] | None = None
        self._num_failures = 0
        self._actors = [self._start() for _ in range(self._rollout.num_workers)]

    def publish(self, weights: Mapping[str, Tensor], version: int) -> int:
        """Sends weights to all actors; returns their bytes.

        Args:
            weights: by the plain model's names.
            version: updates that they have seen.
        """
        arrays = to_arrays({name: value.detach().cpu() for name, value in weights.items()})
        self._weights = (ray.put(arrays), version)
        for actor in self._actors:
            actor.load.remote(*self._weights)
        return sum(array.nbytes for array in arrays.values())

    def submit(self, requests: Sequence[Request], group_size: int) -> list[Assignment]:
        """Hands requests out, group by group and evenly.

        Args:
            requests: groups one after the other.
            group_size: requests of a group.
        """
        num_groups = len(requests) // group_size
        per_actor = -(-num_groups // len(self._actors)) * group_size
        starts = range(0, len(requests), per_actor)
        return [
            self._assign(requests[start : start + per_actor], place)
            for place, start in enumerate(starts)
        ]

    def collect(self, assignments: Sequence[Assignment]) -> list[Draw]:
        """What became of assignments; those of an actor that died are drawn again by another.

        Raises:
            RuntimeError: more actors died than `rl.rollout.max_failures`.
        """
        return [self._collect(assignment) for assignment in assignments]

    def pids(self) -> list[int]:
        """Process ids of the actors, in their order."""
        return ray.get([actor.__ray_call__.remote(_pid) for actor in self._actors])

    def _collect(self, assignment: Assignment) -> Draw:
        while True:
            try:
                draw: Draw = ray.get(assignment.ref)
                return draw
            except RayActorError as error:
                if self._actors[assignment.place] is assignment.actor:
                    self._replace(assignment.place, error)
                assignment = self._assign(
                    assignment.requests, (assignment.place + 1) % len(self._actors)
                )

    def _assign(self, requests: Sequence[Request], place: int) -> Assignment:
        actor = self._actors[place]
        version = None if self._weights is None else self._weights[1]
        return Assignment(requests, place, actor, actor.draw.remote(list(requests), version))

    def _replace(self, place: int, error: Exception) -> None:
        """A new actor in place of a dead one."""
        self._num_failures += 1
        if self._num_failures > self._rollout.max_failures:
            raise RuntimeError(
                f"{self._num_failures} roll-out actors died, and rl.rollout.max_failures="
                f"{self._rollout.max_failures}: {error}"
            ) from error
        _log.warning("roll-out actor %d died, its groups are drawn again: %s", place, error)
        self._actors[place] = self._start()
        if self._weights is not None:
            self._actors[place].load.remote(*self._weights)

    def _start(self) -> Any:
        num_cpus = self._rollout.cpus_per_worker
        wants_gpu = self._rollout.use_gpu
        if wants_gpu == "auto":
            wants_gpu = available_resources().gpus > 0
        actor = ray.remote(RolloutWorker).options(
            num_cpus=num_cpus,
            num_gpus=int(wants_gpu),
            scheduling_strategy="DEFAULT",  # not the bundle of the worker that asks
            runtime_env={"env_vars": worker_env(num_cpus)},
        )
        device = "cuda" if wants_gpu else "cpu"
        return actor.remote(self._config.model_dump(mode="json"), device, num_cpus)


def _pid(worker: RolloutWorker) -> int:
    return os.getpid()
