"""Which prompts a step asks, and with which draws: functions of the seed and the step alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from a2d_ray.config import TrainConfig
from a2d_ray.generation.decoding.params import SamplingParams, derive_seed
from a2d_ray.generation.engine.request import Request
from a2d_ray.rl.prompts import PromptRow

CHOICES = 128  # the engine's bound on the answers that one seed tells apart


@dataclass(frozen=True, kw_only=True)
class PromptOrder:
    """The order of the prompts over a run.

    A step has places for its groups and for those that may replace them. Places that are not
    needed are passed over, so what a step asks does not depend on how others went.

    Attributes:
        prompts: to ask, in their own order.
        groups: of a step.
        resample: how often a step may ask others.
        seed: of the run.
    """

    prompts: Sequence[PromptRow]
    groups: int
    resample: int
    seed: int

    def at(self, step: int, turn: int, count: int) -> list[PromptRow]:
        """The first `count` prompts of a step in one of its turns.

        Args:
            step: optimizer steps before it.
            turn: 0, or which replacement.
            count: at most the groups of a step.
        """
        first = (step * (self.resample + 1) + turn) * self.groups
        return [self._at(first + index) for index in range(count)]

    def _at(self, position: int) -> PromptRow:
        epoch, place = divmod(position, len(self.prompts))
        return self.prompts[_permutation(len(self.prompts), self.seed, epoch)[place]]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return order


def group_requests(
    prompt: PromptRow, place: tuple[int, int, int], config: TrainConfig
) -> list[Request]:
    """The requests of one group.

    Args:
        prompt: that all of them answer.
        place: step, turn, and index among the groups there, which their draws depend on.
        config: the resolved training configuration.
    """
    assert config.rl is not None
    sampling = config.rl.rollout.sampling.model_dump()
    requests = []
    for index in range(config.rl.group_size):
        part, choice = divmod(index, CHOICES)
        names = ("roll-out", *place, prompt.id, part)
        changes = {"seed": derive_seed(config.run.seed, *names), "logprobs": 0}
        name = f"{place[-1]}-{index}"
        requests.append(_request(prompt, name, sampling | changes, choice))
    return requests


def greedy_request(prompt: PromptRow, config: TrainConfig) -> Request:
    """The request of an evaluation: the likeliest token everywhere."""
    assert config.rl is not None
    changes = {"temperature": 0.0, "logprobs": 0}
    sampling = config.rl.rollout.sampling.model_dump() | changes
    return _request(prompt, str(prompt.id), sampling, 0)


def _request(prompt: PromptRow, name: str, sampling: dict[str, object], choice: int) -> Request:
    params = SamplingParams(**sampling)
    return Request(request_id=name, prompt=prompt.segments, params=params, choice=choice)
