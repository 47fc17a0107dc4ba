"""A service over a directory, with suites of a few documents."""

from pathlib import Path

import pytest
import yaml

from a2d_ray.config import EvaluationServiceConfig
from a2d_ray.evaluation.service.app import create_evaluation_app
from a2d_ray.evaluation.service.runner import Runner
from a2d_ray.evaluation.service.store import EvaluationStore
from a2d_ray.evaluation.service.suites import read_suites

SUMS = {"task": "a2d_sums", "metric": "exact_match,strict", "limit": 24}
SPELLING = {"task": "a2d_spelling", "metric": "exact_match,strict", "limit": 3}
CHAT = {"task": "a2d_chat_nelbo", "metric": "nelbo_bits_per_byte,none"}
CODE = {"task": "a2d_humaneval_instruct", "metric": "pass@1,none"}


@pytest.fixture
def suites(tmp_path) -> Path:
    """A directory of suites."""
    place = tmp_path / "suites"
    place.mkdir()
    for name, tasks in {
        "short": [SUMS, SPELLING, CHAT],
        "code": [CODE],
        "nelbo": [CHAT],
    }.items():
        values = {"name": name, "model": {"path": "x"}, "tasks": tasks}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return place


@pytest.fixture
def serve_evaluations(tmp_path, suites):
    """Makes a runner that was not started, and its application."""

    def _make(*, keys=None, endpoint="http://127.0.0.1:9/v1", **options):
        config = EvaluationServiceConfig(
            suites=[str(suites)], storage_path=str(tmp_path / "runs"), endpoint=endpoint, **options
        )
        runner = Runner(
            EvaluationStore(config.storage_path),
            lambda model: model == "tiny",
            max_queued=config.max_queued,
        )
        found = read_suites(config.suites)
        app = create_evaluation_app(
            runner, found, config, served_models=lambda: ["tiny", "other"], keys=keys
        )
        return runner, app

    return _make
