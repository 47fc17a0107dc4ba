"""Benchmarks: contenders take turns, lines are complete, ratios above 1 mean ours is better."""

import json
import sys
import types

import pytest

from a2d_ray.config import BenchmarkConfig
from benchmarks import harness
from benchmarks.harness import Case, measure, run_suite


def test_contenders_take_turns():
    calls = []
    timings = measure(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warmup=1
    )
    assert "".join(calls) == "ababab"
    assert timings["a"].cpu_s >= 0 and timings["b"].wall_s > 0


@pytest.mark.parametrize(("is_cost", "ratio"), [(True, 2.0), (False, 0.5)])
def test_a_ratio_above_one_is_better(is_cost, ratio):
    assert Case(name="x", ours=1.0, baseline=2.0, unit="s", is_cost=is_cost).ratio == ratio


def test_every_line_holds_every_column(monkeypatch):
    suite = types.ModuleType("suite_of_this_test")
    suite.run = lambda config: iter([Case(name="one", ours=2.0, baseline=3.0, unit="s")])
    monkeypatch.setitem(sys.modules, suite.__name__, suite)
    monkeypatch.setitem(harness.SUITES, "training", suite.__name__)
    *cases, total = map(json.loads, run_suite(BenchmarkConfig(suite="training")))
    columns = "suite case ours baseline unit ratio baseline_forwards baseline_floor threads"
    assert {*columns.split(), "load", "versions"} <= set(cases[0])
    assert (cases[0]["ratio"], total["summary"]) == (1.5, {"one": 1.5})
