"""Times of a step and of its ranks."""

import time

import torch

from a2d_ray.training.metrics import StepTimes, rank_figures
from a2d_ray.training.ranks import Ranks
from tests.training.two_ranks import on_two_ranks


def test_the_slowest_rank_and_the_lower_median():
    figures = rank_figures(torch.tensor([1.0, 1.5, 4.0, 2.0], dtype=torch.float64))
    assert figures == {
        "time/slowest_rank": 2, "time/slowest_rank_s": 4.0, "time/median_rank_s": 1.5,
    }  # fmt: skip


def test_own_work_is_rows_layout_and_forward_passes():
    started = time.perf_counter() - 10  # rows took ten seconds
    times = StepTimes(started, torch.device("cpu"))
    time.sleep(0.05)
    times.laid_out()
    time.sleep(0.2)  # waits for others
    before = times.own_s
    for _ in range(2):
        with times.forward():
            time.sleep(0.05)
        time.sleep(0.2)  # a backward pass, in which gradients are reduced
    times.computed()
    times.finish()
    assert 10 <= times.data_s < before and times.own_s - before >= 0.1
    assert times.own_s <= times.step_s - 0.6 and times.compute_s >= 0.75


def exchange(rank):
    ranks = Ranks(rank, 2, torch.device("cpu"))
    return ranks.texts(("10.0.0.7", "fe80::" + "é" * 40)[rank]), ranks.sum(ranks.each(rank + 0.5))


def test_every_rank_learns_of_all(tmp_path):
    for texts, values in on_two_ranks(exchange, tmp_path):
        assert texts[0] == "10.0.0.7" and texts[1] == "fe80::" + "é" * 29
        assert values.tolist() == [0.5, 1.5]
