"""A step's roll-outs: asked, drawn, judged, and asked again where a group says nothing."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from a2d_ray.config import TrainConfig
from a2d_ray.diffusion.policy import group_advantages
from a2d_ray.generation.engine.request import Request
from a2d_ray.rl.credit import Scored
from a2d_ray.rl.order import PromptOrder, greedy_request, group_requests
from a2d_ray.rl.pools import ColocatedPool, SeparatePool, from_first
from a2d_ray.rl.prompts import PromptRow, PromptSet
from a2d_ray.rl.scoring import RewardPool
from a2d_ray.rl.worker import Rollout
from a2d_ray.training.ranks import Ranks


@dataclass(frozen=True)
class _Group:
    """The answers to one prompt, and their rewards."""

    prompt: PromptRow
    rollouts: Sequence[Rollout]
    rewards: Sequence[float]

    @property
    def is_equal(self) -> bool:
        """Whether no answer is better than another."""
        return len({reward for reward in self.rewards if not math.isnan(reward)}) < 2


class RolloutSource:
    """Draws and judges the roll-outs of each step. Every rank has one, and gets all roll-outs.

    Args:
        config: the resolved training configuration.
        prompts: of the run.
        tokenizer: ids to text.
        ranks: this rank.

    Attributes:
        figures: of the last step.
    """

    def __init__(
        self, config: TrainConfig, prompts: PromptSet, tokenizer: Any, ranks: Ranks
    ) -> None:
        assert config.rl is not None
        self._config = config
        self._rl = config.rl
        self._tokenizer = tokenizer
        self._ranks = ranks
        self._num_groups = config.batch.rows // config.rl.group_size
        self._held_out = prompts.of("test")[: config.rl.eval_prompts]
        self._order = PromptOrder(
            prompts=prompts.of("train"),
            groups=self._num_groups,
            resample=config.rl.resample,
            seed=config.run.seed,
        )
        is_colocated = config.rl.rollout.placement == "colocated"
        self.pool = (ColocatedPool if is_colocated else SeparatePool)(config, ranks)
        self._rewards = RewardPool(config.rl.reward) if ranks.is_first else None
        self._published: int | None = None
        self._next = 0
        self._reward_s = 0.0
        self.figures: dict[str, float] = {}

    def step(self, engine: Any, step: int, num_steps: int) -> list[Scored]:
        """The roll-outs that a step learns. Collective.

        Args:
            engine: DeepSpeed's; its weights draw what is drawn from now on.
            step: optimizer steps before.
            num_steps: of the whole run.
        """
        started = time.perf_counter()
        self.publish(engine, step)
        self._next = max(self._next, step)
        ahead = min(step + self._rl.rollout.staleness, num_steps - 1)
        while self._next <= ahead:
            prompts = self._order.at(self._next, 0, self._num_groups)
            requests = self._requests(prompts, self._next, 0)
            self.pool.submit(self._next, requests, self._rl.group_size)
            self._next += 1
        self._reward_s = 0.0
        groups, num_equal = self._groups(step)
        batch = self._scored(groups)
        self.figures = _figures(groups, step) | self.pool.figures
        self.figures |= {
            "rl/equal_groups": num_equal,
            "time/reward_s": self._reward_s,
            "time/rollout_s": time.perf_counter() - started,
        }
        return batch

    def publish(self, engine: Any, version: int) -> None:
        """Gives the roll-out workers the present weights, once per update. Collective."""
        if self._published != version:
            self.pool.publish(engine, version)
            self._published = version

    def evaluate(self, engine: Any, step: int) -> tuple[dict[str, float], list[tuple[Any, ...]]]:
        """Held-out figures, and (prompt, answer, reward) of each; empty: no held-out prompt."""
        if not self._held_out:
            return {}, []
        self.publish(engine, step)
        requests = [greedy_request(prompt, self._config) for prompt in self._held_out]
        rollouts = self.pool.draw(-1, requests, 1)
        rewards = self._judge(list(zip(self._held_out, rollouts, strict=True)))
        there = [reward for reward in rewards if not math.isnan(reward)]
        tokens, steps = _counts(rollouts)
        figures = {
            "eval/reward": sum(there) / max(1, len(there)),
            "eval/accepted_length": tokens / steps,
            "eval/answer_tokens": tokens / len(rollouts),
        }
        return figures, list(zip(self._held_out, rollouts, rewards, strict=True))

    def _groups(self, step: int) -> tuple[list[_Group], int]:
        """The groups of a step, and how many of all that were drawn have equal rewards."""
        kept: list[_Group] = []
        equal: list[_Group] = []
        for turn in range(self._rl.resample + 1):
            prompts = self._order.at(step, turn, self._num_groups - len(kept))
            for group in self._draw(prompts, step, turn):
                (equal if group.is_equal else kept).append(group)
            if len(kept) == self._num_groups:
                break
        return kept + equal[: self._num_groups - len(kept)], len(equal)

    def _draw(self, prompts: Sequence[PromptRow], step: int, turn: int) -> list[_Group]:
        size = self._rl.group_size
        key = step if turn == 0 else -1
        rollouts = self.pool.draw(key, self._requests(prompts, step, turn), size)
        owners = [prompt for prompt in prompts for _ in range(size)]
        rewards = self._judge(list(zip(owners, rollouts, strict=True)))
        return [
            _Group(prompt, rollouts[at : at + size], rewards[at : at + size])
            for prompt, at in zip(prompts, range(0, len(rollouts), size), strict=True)
        ]

    def _requests(self, prompts: Sequence[PromptRow], step: int, turn: int) -> list[Request]:
        return [
            request
            for index, prompt in enumerate(prompts)
            for request in group_requests(prompt, (step, turn, index), self._config)
        ]

    def _judge(self, answers: Sequence[tuple[PromptRow, Rollout]]) -> list[float]:
        """Rewards, computed on rank 0. Collective."""
        started = time.perf_counter()
        rewards: list[float] = []
        if self._rewards is not None:
            cases = [(self.text(rollout), prompt.reference) for prompt, rollout in answers]
            rewards = self._rewards.score(cases)
        self._reward_s += time.perf_counter() - started
        return list(from_first(rewards, self._ranks))

    def text(self, rollout: Rollout) -> str:
        """An answer as its reward sees it: without its end-of-turn token."""
        ids = rollout.ids[:-1] if rollout.is_complete else rollout.ids
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _scored(self, groups: Sequence[_Group]) -> list[Scored]:
        rewards_GS = torch.tensor([list(group.rewards) for group in groups])
        gains_GS = group_advantages(rewards_GS, is_scaled=self._rl.scale_rewards)
        return [
            Scored(
                prompt=group.prompt,
                choice=choice,
                rollout=group.rollouts[choice],
                reward=group.rewards[choice],
                advantage=gains[choice],
            )
            for group, gains in zip(groups, gains_GS.tolist(), strict=True)
            for choice in range(len(gains))
        ]


def _counts(rollouts: Sequence[Rollout]) -> tuple[int, int]:
    """Tokens of answers, and forwards that gave them."""
    tokens = sum(len(rollout.ids) for rollout in rollouts)
    return tokens, max(1, sum(rollout.num_steps for rollout in rollouts))


def _figures(groups: Sequence[_Group], step: int) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    there = [reward for reward in rewards if not math.isnan(reward)]
    tokens, steps = _counts(rollouts)
    drafted = sum(rollout.num_drafted for rollout in rollouts)
    figures = {
        "rl/reward": sum(there) / max(1, len(there)),
        "rl/failed_rewards": len(rewards) - len(there),
        "rl/answer_tokens": tokens / len(rollouts),
        "rl/cut_answers": sum(not rollout.is_complete for rollout in rollouts) / len(rollouts),
        "rl/accepted_length": tokens / steps,
        "rl/staleness": step - min(rollout.version for rollout in rollouts),
    }
    if drafted:
        figures["rl/acceptance"] = sum(rollout.num_accepted for rollout in rollouts) / drafted
    return figures
