"""The suite ``serving`` on a small model: every case runs over a socket and adds up."""

import pytest

from a2d_ray.benchmarks import sampling, serving
from a2d_ray.config import BenchmarkConfig
from tests.benchmarks.test_sampling import SMALL


@pytest.fixture
def small(monkeypatch):
    for module in (sampling, serving):
        monkeypatch.setattr(module, "SHAPE", SMALL)
        monkeypatch.setattr(module, "MASK_ID", 511)


def test_every_case_gives_a_line(small):
    cases = {c.name: c for c in serving.run(BenchmarkConfig(suite="serving", quick=True))}
    assert set(cases) == {"clients8", "lock8", "turns"}
    assert all(case.ours > 0 and case.baseline > 0 for case in cases.values())
    tokens = [(32 + 4 * i) // 4 for i in range(8)]
    for n in (1, 8):  # the same requests
        assert cases["clients8"].facts["by_clients"][n]["tokens"] == sum(tokens)
    # In whole blocks: what is stored of 512 tokens.
    assert set(cases["turns"].facts["cached_tokens"]) == {512}
    # Behind a lock the last client waits for all others.
    assert cases["lock8"].ratio > 1


def test_quantiles_are_values_that_so_many_do_not_exceed():
    assert [serving.quantile([3, 1, 2, 4], p) for p in (50, 75, 95, 100)] == [2, 3, 4, 4]
    assert serving.quantile([7.0], 50) == 7.0


def test_unknown_cases_are_refused(small):
    with pytest.raises(ValueError, match="clients9"):
        list(serving.run(BenchmarkConfig(suite="serving", cases=["clients9"])))
