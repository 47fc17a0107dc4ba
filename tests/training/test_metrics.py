"""Times of a step and of its ranks."""

import time

import pytest
import torch

from a2d_ray.training.metrics import StepTimes, rank_figures
from a2d_ray.training.ranks import Ranks
from tests.training.two_ranks import on_two_ranks


def test_the_slowest_rank_and_the_lower_median():
    figures = rank_figures(torch.tensor([1.0, 1.5, 4.0, 2.0], dtype=torch.float64))
    assert figures == {
        "time/slowest_rank": 2, "time/slowest_rank_s": 4.0, "time/median_rank_s": 1.5,
    }  # fmt: skip


def test_own_work_is_rows_what_is_made_of_them_and_forward_passes():
    started = time.perf_counter() - 10  # rows took ten seconds
    times = StepTimes(started, torch.device("cpu"))
    times.waited(9.5, 0.3)
    before = times.own_s
    for _ in range(2):
        with times.forward():
            time.sleep(0.05)
        time.sleep(0.2)  # a backward pass, in which gradients are reduced
    times.computed()
    times.finish()
    assert times.data_s == 9.5 and before == pytest.approx(9.8)
    assert times.own_s - before >= 0.1
    assert times.own_s <= times.step_s - 0.4 and 1.0 <= times.compute_s <= times.step_s - 9.5


def exchange(rank):
    ranks = Ranks(rank, 2, torch.device("cpu"))
    texts = ranks.texts(("10.0.0.7", "fe80::" + "é" * 40)[rank])
    parts = [torch.tensor(rank + 1), ranks.each(rank + 0.5), torch.zeros(0), torch.ones(2)]
    return texts, ranks.sum_parts(parts)


def test_every_rank_learns_of_all(tmp_path):
    for texts, parts in on_two_ranks(exchange, tmp_path):
        assert texts[0] == "10.0.0.7" and texts[1] == "fe80::" + "é" * 29
        assert [part.tolist() for part in parts] == [[3.0], [0.5, 1.5], [], [2.0, 2.0]]
