"""Rewards in processes of their own, so that one that raises or hangs costs its roll-out alone."""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from a2d_ray.config import RewardSection
from a2d_ray.rl.rewards import make_reward
from a2d_ray.runs.environment import worker_env

_log = logging.getLogger(__name__)
GRACE_S = 5.0  # a sandbox ends what takes too long by itself, and says so
START_S = 300.0


class RewardActor:
    """Computes rewards.

    Args:
        section: the reward, as plain values.
    """

    def __init__(self, section: dict[str, Any]) -> None:
        self._reward = make_reward(RewardSection.model_validate(section))

    def ready(self) -> None:
        """Returns once the actor has started."""

    def score(self, answer: str, reference: Any) -> float:
        """The reward of an answer.

        Raises:
            ValueError: it is no finite number.
        """
        value = self._reward(answer, reference)
        if not math.isfinite(value):
            raise ValueError(f"the reward is {value}")
        return value


@dataclass
class _Running:
    """A reward that is being computed."""

    index: int
    place: int
    deadline: float


class RewardPool:
    """Actors that compute rewards; they end with the process that made them.

    Args:
        section: the reward.
    """

    def __init__(self, section: RewardSection) -> None:
        self._section = section
        self._actors = [self._start() for _ in range(section.num_workers)]

    def score(self, cases: Sequence[tuple[str, Any]]) -> list[float]:
        """The reward of each (answer, the row's answer); NaN where it raised, died or hung."""
        scores = [math.nan] * len(cases)
        waiting = deque(range(len(cases)))
        idle = list(range(len(self._actors)))
        running: dict[Any, _Running] = {}
        while waiting or running:
            while waiting and idle:
                index, place = waiting.popleft(), idle.pop()
                ref = self._actors[place].score.remote(*cases[index])
                deadline = time.monotonic() + self._section.timeout + GRACE_S
                running[ref] = _Running(index, place, deadline)
            next_deadline = min(each.deadline for each in running.values())
            done, _ = ray.wait([*running], timeout=max(0.0, next_deadline - time.monotonic()))
            for ref in done or [ref for ref in running if _is_over(running[ref])]:
                each = running.pop(ref)
                scores[each.index] = self._result(ref, each, is_done=bool(done))
                idle.append(each.place)
        return scores

    def _result(self, ref: Any, each: _Running, *, is_done: bool) -> float:
        if not is_done:
            ray.kill(self._actors[each.place])
            self._fail(f"took longer than rl.reward.timeout={self._section.timeout:g} s")
            self._actors[each.place] = self._start()
            return math.nan
        try:
            value: float = ray.get(ref)
            return value
        except RayError as error:
            self._fail(str(error).strip().splitlines()[-1])
            if not hasattr(error, "cause"):  # the process died, the function did not raise
                self._actors[each.place] = self._start()
            return math.nan

    def _fail(self, problem: str) -> None:
        _log.warning("a reward failed, its roll-out teaches nothing: %s", problem)

    def _start(self) -> Any:
        actor = ray.remote(RewardActor).options(
            num_cpus=0,
            scheduling_strategy="DEFAULT",
            runtime_env={"env_vars": worker_env(1)},
        )
        started: Any = actor.remote(self._section.model_dump(mode="json"))
        ray.get(started.ready.remote(), timeout=START_S)
        return started


def _is_over(each: _Running) -> bool:
    return time.monotonic() >= each.deadline
