"""Requests sharded over Ray actors, each with the model and an engine of its own."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import ray
from ray.util import ActorPool

from a2d_ray.evaluation.backends.local import Description, load_backend
from a2d_ray.evaluation.backends.requests import Answer, GenerateRequest, Score, ScoreRequest
from a2d_ray.runs.cluster import start_ray
from a2d_ray.runs.environment import worker_env
from a2d_ray.runs.resources import (
    Share,
    available_resources,
    check_room,
    gpu_share,
    reserved_device,
)


class BackendActor:
    """One actor: a backend whose results are sent back piece by piece."""

    def __init__(self, model: dict[str, Any], objective: str | None, batch_size: int) -> None:
        model = model | {"device": reserved_device(model.get("device", "auto"))}
        self._backend = load_backend(model, objective, batch_size=batch_size)

    def describe(self) -> Description:
        """The model."""
        return self._backend.describe()

    def generate(self, start: int, requests: Sequence[GenerateRequest]) -> list[tuple[int, Answer]]:
        """Answers of a piece that begins at index `start`."""
        return [(start + index, answer) for index, answer in self._backend.generate(requests)]

    def score(self, index: int, batch: Sequence[ScoreRequest]) -> tuple[int, list[Score]]:
        """Scores of one batch."""
        ((_, scores),) = self._backend.score([batch])
        return index, scores


class RayBackend:
    """Shards requests over actors of the Ray that runs, or of a local one.

    Pieces go to the actor that is free. The requests alone decide what a piece is, so results are
    those of one process; a piece whose actor dies is done again by the restarted actor.

    Args:
        model: keywords of `a2d_ray.load`; a path must be readable on every node.
        objective: how to use a directory that carries no contract.
        num_workers: actors.
        batch_size: requests that share a forward of one actor.
        cpus_per_worker, gpus_per_worker: resources of one; auto: `gpu_share`.

    Raises:
        ValueError: there are fewer CPUs or GPUs.
    """

    def __init__(
        self,
        model: dict[str, Any],
        objective: str | None = None,
        *,
        num_workers: int,
        batch_size: int,
        cpus_per_worker: float = 1,
        gpus_per_worker: float | Literal["auto"] = "auto",
    ) -> None:
        self._batch_size = batch_size
        there = available_resources()
        num_gpus = gpu_share(gpus_per_worker, num_workers, there)
        check_room(
            there,
            "num_workers",
            num_workers,
            cpus=Share(cpus_per_worker, "cpus_per_worker"),
            gpus=Share(num_gpus, "gpus_per_worker"),
        )
        start_ray(max(1, math.ceil(num_workers * cpus_per_worker)))
        actor = ray.remote(BackendActor).options(
            num_cpus=cpus_per_worker,
            num_gpus=num_gpus,
            max_restarts=3,
            max_task_retries=3,
            runtime_env={"env_vars": worker_env(max(1, int(cpus_per_worker)))},
        )
        self._actors: list[Any] = [
            actor.remote(model, objective, batch_size) for _ in range(num_workers)
        ]

    def describe(self) -> Description:
        """The model, as the first actor sees it."""
        return ray.get(self._actors[0].describe.remote())

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Answer]]:
        """Answers, a piece of requests at a time.

        A piece drains to its slowest request before an actor takes the next one: pieces are of
        several batches where there are requests enough for every actor to get some.
        """
        fair = len(requests) // (2 * len(self._actors))
        size = max(self._batch_size, min(fair, 4 * self._batch_size))
        pieces = [
            (start, requests[start : start + size]) for start in range(0, len(requests), size)
        ]
        pool = ActorPool(self._actors)
        for answers in pool.map_unordered(lambda a, piece: a.generate.remote(*piece), pieces):
            yield from answers

    def score(self, batches: Sequence[Sequence[ScoreRequest]]) -> Iterator[tuple[int, list[Score]]]:
        """Scores, batch by batch."""
        pool = ActorPool(self._actors)
        yield from pool.map_unordered(
            lambda a, item: a.score.remote(*item), list(enumerate(batches))
        )
