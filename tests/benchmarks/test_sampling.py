"""The suite ``sampling`` on a small model: every case runs, baseline and engine agree."""

import pytest

from a2d_ray.config import BenchmarkConfig
from benchmarks import models, sampling


@pytest.mark.slow
def test_every_case_gives_a_line(small):
    cases = list(sampling.run(BenchmarkConfig(suite="sampling", quick=True)))
    assert [case.name for case in cases][:3] == ["p64_t1", "p512_t4", "p1024_t4"]
    assert all(case.ours > 0 and case.baseline > 0 for case in cases)
    for case, prefixes, steps in zip(cases[:3], (2, 2, 2), (64, 16, 16), strict=True):
        assert case.baseline_forwards == prefixes + steps
        assert case.facts["identical_tokens_float32"] == 32


def test_an_engine_that_gives_other_tokens_is_found_out(small, monkeypatch):
    monkeypatch.setattr(sampling.NaiveSampler, "sample", lambda self, prompt, params: [1] * 32)
    with pytest.raises(RuntimeError, match="differ in float32"):
        sampling._check_tokens(
            BenchmarkConfig(suite="sampling", quick=True),
            models.make_prompt(8, 0),
            sampling.step_params(64, 1),
        )


def test_unknown_cases_are_refused(small):
    with pytest.raises(ValueError, match="p65_t1"):
        next(sampling.run(BenchmarkConfig(suite="sampling", cases=["p65_t1"])))
