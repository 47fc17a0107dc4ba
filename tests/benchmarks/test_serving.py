"""The suite ``serving`` on a small model: every case runs over a socket and adds up."""

import pytest

from a2d_ray.config import BenchmarkConfig
from benchmarks import http_load, ray_serving, serving

HERE = ["clients8", "lock8", "turns"]


def test_every_case_gives_a_line(small):
    config = BenchmarkConfig(suite="serving", quick=True, cases=HERE)
    cases = {case.name: case for case in serving.run(config)}
    assert list(cases) == HERE
    assert all(case.ours > 0 and case.baseline > 0 for case in cases.values())
    tokens = [(32 + 4 * i) // 4 for i in range(8)]
    for n in (1, 8):  # the same requests
        assert cases["clients8"].facts["by_clients"][n]["tokens"] == sum(tokens)
    # In whole blocks: what is stored of 512 tokens.
    assert set(cases["turns"].facts["cached_tokens"]) == {512}
    # Behind a lock the last client waits for all others.
    assert cases["lock8"].ratio > 1


def test_quantiles_are_values_that_so_many_do_not_exceed():
    assert [http_load.quantile([3, 1, 2, 4], p) for p in (50, 75, 95, 100)] == [2, 3, 4, 4]
    assert http_load.quantile([7.0], 50) == 7.0


def test_unknown_cases_are_refused(small):
    with pytest.raises(ValueError, match="clients9"):
        list(serving.run(BenchmarkConfig(suite="serving", cases=["clients9"])))


@pytest.mark.cluster
@pytest.mark.slow
def test_overload_is_told_apart_from_what_is_answered(small, ray_local):
    config = BenchmarkConfig(suite="serving", quick=True)
    case = ray_serving.overload(config)
    assert case.facts["clients"] == 80
    assert case.facts["refused"] >= 72  # all but those there is room for
    assert case.facts["answered"] > 0
    assert 0 < case.ours < case.facts["answered_max_s"]
    assert case.facts["recovery_s"] < 60
