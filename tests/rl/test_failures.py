"""Processes that die or hang cost what they held, not the run."""

import math
import os
import signal

import pytest

from a2d_ray.config import RewardSection
from a2d_ray.rl.prompts import read_prompt_rows
from tests.rl.test_rollouts import requests_of

pytestmark = pytest.mark.cluster


@pytest.mark.slow
def test_a_reward_that_raises_hangs_or_dies_costs_its_roll_out(ray_local):
    from a2d_ray.rl.scoring import RewardPool

    section = RewardSection(kind="function", function="tests.rl.judges:moody", timeout=0.5)
    pool = RewardPool(section)
    moods = ["fine", "raise", "hang", "fine", "nan", "die", "fine"]
    scores = pool.score([("", mood) for mood in moods])
    assert [score for score in scores if not math.isnan(score)] == [1.0] * 3
    assert [mood for mood, score in zip(moods, scores, strict=True) if score == 1] == ["fine"] * 3


@pytest.mark.slow
def test_groups_of_a_killed_actor_are_drawn_again_by_another(ray_local, make_config):
    from a2d_ray.rl.actors import RolloutActors
    from a2d_ray.rl.worker import RolloutWorker

    config = make_config(rollout={"placement": "separate", "num_workers": 2, "max_failures": 1})
    requests = requests_of(read_prompt_rows(config).of("train")[:4], config)
    alone = RolloutWorker(config.model_dump(mode="json"), "cpu")
    wanted = [rollout.ids for rollout in alone.draw(requests).rollouts]

    def ids_of(assignments):
        return [r.ids for draw in actors.collect(assignments) for r in draw.rollouts]

    actors = RolloutActors(config)
    first, second = actors.pids()
    os.kill(first, signal.SIGKILL)
    assert ids_of(actors.submit(requests, 4)) == wanted
    assert ids_of(actors.submit(requests, 4)) == wanted
    replaced = actors.pids()
    assert replaced[0] != first and replaced[1] == second
    os.kill(second, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"2 roll-out actors died.*max_failures=1"):
        actors.collect(actors.submit(requests, 4))
