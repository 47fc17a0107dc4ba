"""A straggler is one rank, by a margin, most of the time."""

import json

import pytest

from a2d_ray.runs.storage import WORKERS_FILE, RunDirectory
from a2d_ray.runs.stragglers import find_straggler


def steps(slowest, own_s, median_s=1.0):
    return [
        {"time/slowest_rank": r, "time/slowest_rank_s": s, "time/median_rank_s": median_s}
        for r, s in zip(slowest, own_s, strict=True)
    ]


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "run").mkdir()
    nodes = [f"10.0.0.{r // 2}" for r in range(4)]
    (tmp_path / "run" / WORKERS_FILE).write_text(json.dumps(nodes))
    return RunDirectory.of(str(tmp_path), "run")


def test_a_rank_that_is_slow_in_most_steps_is_named_with_its_node(directory):
    lines = steps([3] * 8 + [0, 1], [2.0, 1.9, 2.1, 2.0, 2.0, 2.0, 30.0, 2.0, 1.1, 1.1])
    found = find_straggler(lines, directory)
    assert (found.rank, found.node, found.num_steps, found.of_steps) == (3, "10.0.0.1", 8, 10)
    assert (found.own_s, found.median_s) == (2.0, 1.0)
    assert str(found) == (
        "rank 3 on node 10.0.0.1 is slow: 2 s of its own work a step, 2.0x the median rank (1 s), "
        "slowest in 8 of 10 recent steps"
    )


@pytest.mark.parametrize(
    "lines",
    [
        steps([3, 0] * 5, [2.0] * 10),  # in turn: rows that differ
        steps([3] * 10, [1.1] * 10),  # hardly slower
        steps([3] * 4, [9.0] * 4),  # too early to say
        steps([3] * 10, [9.0] + [1.1] * 9),  # one hiccup
        [{"step": 1, "loss": 1.0}] * 10,  # nothing measured
    ],
)
def test_what_is_no_straggler(lines, directory):
    assert find_straggler(lines, directory) is None


def test_nodes_that_nobody_noted(tmp_path):
    (tmp_path / "run").mkdir()
    found = find_straggler(steps([1] * 5, [2.0] * 5), RunDirectory.of(str(tmp_path), "run"))
    assert found.node is None and "node unknown" in str(found)
