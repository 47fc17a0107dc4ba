"""The suite ``evaluation`` on a tiny shape: equal answers, fewer forwards."""

import json

import pytest

from a2d_ray.config import BenchmarkConfig
from benchmarks.harness import run_suite


@pytest.mark.slow
def test_answers_are_equal_and_the_case_says_what_it_must(small):
    lines = [
        json.loads(line) for line in run_suite(BenchmarkConfig(suite="evaluation", quick=True))
    ]
    case, summary = lines
    assert case["case"] == "evaluation" and summary["summary"].keys() == {"evaluation"}
    assert case["equal_answers"] == "4 of 4"
    assert case["baseline_forwards"] == 4 * (2 + 32)  # two prefixes, two tokens per step of 64
    assert case["answer_tokens"] == [16, 20, 24, 28] and case["budget_tokens"] == 64
    assert {"ours_concurrency_1", "ratio_concurrency_1", "baseline_floor"} <= case.keys()
