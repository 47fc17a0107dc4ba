"""The suites that clients may start, and what is made of one for a served model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from a2d_ray.cli import parse_config
from a2d_ray.config import EvaluateConfig, EvaluatedTask, EvaluationServiceConfig
from a2d_ray.config.layers import always, validate
from a2d_ray.evaluation.harness.tasks import TASKS_DIRECTORY
from a2d_ray.http.errors import RequestError, not_found
from a2d_ray.sandbox.runner import SandboxError, check_isolation

NO_LIKELIHOODS = "it needs likelihoods, which only job evaluate measures"


def read_suites(paths: Sequence[str]) -> dict[str, EvaluateConfig]:
    """The suites in files and directories, by the name that each gives itself.

    Raises:
        ValueError: a path without suites, a file that is none, or a name that two files give.
    """
    found: dict[str, EvaluateConfig] = {}
    for file in [file for path in paths for file in _files(path)]:
        suite = parse_config(EvaluateConfig, "evaluate", [str(file)])
        if suite.name in found:
            raise ValueError(f"evaluations.suites: two suites are named {suite.name!r}: {file}")
        found[suite.name] = suite
    return found


def _files(path: str) -> list[Path]:
    place = Path(path).expanduser()
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise ValueError(
            f"evaluations.suites: {place.absolute()} is no suite and holds none: name YAML files "
            "such as jobs/configs/evaluate.yaml, or directories of them"
        )
    return files


@dataclass(frozen=True)
class TaskTraits:
    """What a task asks for; of the harness's own tasks, its answers are all that is known here.

    Attributes:
        needs_likelihoods: not only answers.
        runs_code: that the model wrote.
    """

    needs_likelihoods: bool = False
    runs_code: bool = False


class _Loader(yaml.SafeLoader):
    """Reads a task's YAML without importing the functions that it names."""


_Loader.add_constructor("!function", lambda loader, node: None)


@cache
def task_traits(task: str) -> TaskTraits:
    """What one of our tasks asks for."""
    file = TASKS_DIRECTORY / f"{task}.yaml"
    if not file.is_file():
        return TaskTraits()
    values = yaml.load(file.read_text(), Loader=_Loader)
    return TaskTraits(
        needs_likelihoods=values["output_type"] != "generate_until",
        runs_code=bool(values.get("unsafe_code")),
    )


def find_suite(suites: Mapping[str, EvaluateConfig], name: str) -> EvaluateConfig:
    """The suite of that name.

    Raises:
        RequestError: 404, with the names that there are.
    """
    if name not in suites:
        raise not_found("suite", name, sorted(suites))
    return suites[name]


def fit_suite(
    suite: EvaluateConfig, *, model: str, limit: int | None, options: EvaluationServiceConfig
) -> tuple[EvaluateConfig, list[dict[str, str]]]:
    """The evaluation of a served model, and the tasks that an endpoint cannot be measured on.

    Args:
        suite: as its file has it.
        model: id of the served model.
        limit: documents of each task; None: the suite's own, at most `options.max_limit`.
        options: what the operator allows.

    Raises:
        RequestError: 400 for a limit that is too high or a suite without a task for an endpoint,
            403 for code that may not run.
    """
    if limit is not None and limit > options.max_limit:
        raise RequestError(
            f"limit ({limit}) exceeds what this server allows ({options.max_limit})",
            param="limit",
            code="invalid_value",
        )
    skipped = [t.task for t in suite.tasks if task_traits(t.task).needs_likelihoods]
    tasks = [_bounded(t, limit, options) for t in suite.tasks if t.task not in skipped]
    if not tasks:
        raise RequestError(f"{suite.name}: no task can run: {NO_LIKELIHOODS}", param="suite")
    for task in tasks:
        _check_code(task.task, options)
    own: dict[str, Any] = {
        "kind": "a2d",
        "model": {"path": model},
        "tasks": [task.model_dump() for task in tasks],
        "endpoint": options.endpoint,
        "served_model": model,
        "num_workers": 0,
        "batch_size": options.concurrency,
        "datasets_dir": options.datasets_dir,
        "run_code": options.run_code,
    }
    config = validate(EvaluateConfig, suite.model_dump() | own, gives_way=always)
    return config, [{"task": task, "reason": NO_LIKELIHOODS} for task in skipped]


def _bounded(
    task: EvaluatedTask, limit: int | None, options: EvaluationServiceConfig
) -> EvaluatedTask:
    most = min(task.limit or options.max_limit, options.max_limit)
    return task.model_copy(update={"limit": limit or most})


def _check_code(task: str, options: EvaluationServiceConfig) -> None:
    if not task_traits(task).runs_code:
        return
    if not options.run_code:
        raise RequestError(
            f"{task} runs code that the model wrote, which this server does not allow: its "
            "operator can, with evaluations.run_code=true",
            status=403,
            param="suite",
            code="code_not_allowed",
        )
    try:
        check_isolation()
    except SandboxError as error:
        raise RequestError(str(error), status=403, param="suite", code="no_sandbox") from error
