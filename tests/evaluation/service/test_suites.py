"""The shipped suites as clients may start them."""

from pathlib import Path

import pytest

from a2d_ray.config import EvaluationServiceConfig
from a2d_ray.evaluation.service.suites import fit_suite, read_suites, task_traits

ROOT = Path(__file__).parent.parent.parent.parent


def test_all_shipped_suites_can_be_started(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = EvaluationServiceConfig(run_code=True)
    suites = read_suites(options.suites)
    assert len(suites) == 9 and {"offline", "gsm8k_cot", "humaneval_instruct"} <= suites.keys()
    for suite in suites.values():
        config, skipped = fit_suite(suite, model="m", limit=2, options=options)
        assert config.endpoint == options.endpoint and config.served_model == "m"
        assert all(task.limit == 2 for task in config.tasks)
        assert len(config.tasks) + len(skipped) == len(suite.tasks)
        assert all("nelbo" in task["task"] for task in skipped)


def test_traits_are_those_of_the_tasks():
    assert task_traits("a2d_chat_nelbo").needs_likelihoods
    assert task_traits("a2d_mbpp_instruct").runs_code
    assert not task_traits("a2d_sums").needs_likelihoods
    assert not task_traits("gsm8k_cot").runs_code


def test_paths_without_suites_are_refused(tmp_path, suites):
    with pytest.raises(ValueError, match=r"evaluations\.suites.*nowhere"):
        read_suites([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"evaluations\.suites.*empty"):
        read_suites([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="two suites are named 'code'"):
        read_suites([str(suites), str(suites / "code.yaml")])
    (suites / "bad.yaml").write_text("name: bad\nmodell: 1\n")
    with pytest.raises(ValueError, match="modell"):
        read_suites([str(suites)])
