"""Runs the tasks of an `EvaluateConfig` and returns a report."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from a2d_ray.config import EvaluateConfig, EvaluatedTask, LikelihoodKind
from a2d_ray.evaluation.harness.tasks import TASKS_DIRECTORY
from a2d_ray.evaluation.report.provenance import code_state, data_fingerprint, model_state, versions
from a2d_ray.evaluation.report.statistics import monte_carlo_stderr, root_of_squares
from a2d_ray.sandbox.runner import check_isolation

Observer = Callable[[str, int, int], None]
REPORT_FORMAT = 1


def run_suite(
    config: EvaluateConfig, *, model: Any = None, observe: Observer | None = None
) -> dict[str, Any]:
    """Measures every task.

    Args:
        config: what is measured and where answers are kept.
        model: a model of the harness to use instead of the one that `config` names.
        observe: called with the task's name, how many of its results are there, and of how many.

    Returns:
        The report: everything that is needed to repeat it; see `a2d_ray.evaluation.report.report`.

    Raises:
        ValueError: a task that does not exist or needs what is missing, or a metric that the task
            does not have.
    """
    manager = _task_manager(config)
    loaded = [(task, _load(config, task, manager)) for task in config.tasks]
    model = model or build_model(config)
    kinds = {task.task: _likelihood(found, model) for task, found in loaded}
    started = time.time()
    results = {}
    for task, found in loaded:
        if observe is not None:
            model.responder.observe = partial(observe, task.task)
        measured = _run_task(config, task, found, model)
        results[task.task] = measured | {"likelihood": kinds[task.task]}
    return {
        "format": REPORT_FORMAT,
        "name": config.name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        **code_state(),
        "versions": versions(),
        "config": config.model_dump(mode="json"),
        "model": model_state(config, model),
        "tasks": results,
    }


def build_model(config: EvaluateConfig) -> Any:
    """The harness's model that `config` names."""
    if config.kind == "ar":
        from a2d_ray.evaluation.harness.ar import TimedHFLM

        load = config.model
        device = load.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return TimedHFLM(
            pretrained=load.path, device=device, dtype=load.dtype, batch_size=config.batch_size
        )
    from a2d_ray.evaluation.harness.model import A2DHarnessModel

    return A2DHarnessModel(
        backend=_backend(config),
        pretrained=config.model.path,
        likelihood=config.likelihood,
        mc_num=config.mc_num,
        cache=str(Path(config.output) / "answers.sqlite"),
    )


def _backend(config: EvaluateConfig) -> Any:
    """Who answers; what is not used is not loaded."""
    keywords = config.model.model_dump(exclude_none=True)
    if config.endpoint:
        from a2d_ray.evaluation.backends.endpoint import EndpointBackend

        return EndpointBackend(config.endpoint, config.served_model, concurrency=config.batch_size)
    if config.num_workers:
        from a2d_ray.evaluation.backends.actors import RayBackend

        return RayBackend(
            keywords,
            num_workers=config.num_workers,
            batch_size=config.batch_size,
            cpus_per_worker=config.cpus_per_worker,
            gpus_per_worker=config.gpus_per_worker,
        )
    from a2d_ray.evaluation.backends.local import load_backend

    return load_backend(keywords, batch_size=config.batch_size)


def _task_manager(config: EvaluateConfig) -> Any:
    """Our tasks, and the harness's thousands only where one of them is wanted."""
    from lm_eval.tasks import TaskManager

    ours = {path.stem for path in TASKS_DIRECTORY.glob("*.yaml")}
    wanted = {task.task for task in config.tasks}
    manager = TaskManager(include_path=str(TASKS_DIRECTORY), include_defaults=not wanted <= ours)
    unknown = sorted(wanted - set(manager.all_tasks))
    if unknown:
        raise ValueError(f"tasks: {unknown[0]} is no task of the harness or of ours {sorted(ours)}")
    return manager


def _load(config: EvaluateConfig, task: EvaluatedTask, manager: Any) -> dict[str, Any]:
    """The objects of a task, with their data; refused before any work if it cannot run."""
    with _data_from(config.datasets_dir):
        try:
            loaded = manager.load([task.task])
        except (ModuleNotFoundError, AssertionError) as error:
            raise ValueError(_missing(task.task, str(error))) from error
    members = list(loaded["tasks"].values())
    _check_metric(task, members)
    if any(getattr(member, "UNSAFE_CODE", False) for member in members):
        _check_code(config, task)
    return {**loaded, "manager": manager}


def _likelihood(found: dict[str, Any], model: Any) -> LikelihoodKind | None:
    """What measures a task's likelihoods (the harness's own models are AR); None: it has none."""
    if all(member.OUTPUT_TYPE == "generate_until" for member in found["tasks"].values()):
        return None
    kind: LikelihoodKind = getattr(model, "likelihood", "ar")
    return kind


def _missing(task: str, reason: str) -> str:
    """What to install for a task that cannot be loaded."""
    if "lm-eval[math]" in reason:
        return f"{task} needs packages that are missing: pip install 'a2d-ray[math]' ({reason})"
    return f"{task} needs a package that is missing: {reason}"


def _check_code(config: EvaluateConfig, task: EvaluatedTask) -> None:
    """Code of a model runs only when that is allowed, by our own tasks, where it is isolated."""
    if not config.run_code:
        raise ValueError(
            f"{task.task} runs code that the model wrote: allow it with run_code=true "
            "(it runs in a sandbox)"
        )
    if not (TASKS_DIRECTORY / f"{task.task}.yaml").exists():
        raise ValueError(
            f"{task.task} would run the model's code in this process: use one of our tasks, "
            "a2d_humaneval_instruct or a2d_mbpp_instruct"
        )
    check_isolation()


def _run_task(
    config: EvaluateConfig, task: EvaluatedTask, loaded: dict[str, Any], model: Any
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    _set_sampling(model, task)
    speed = getattr(model, "speed", None)
    before = dict(vars(speed)) if speed else {}
    responder = getattr(model, "responder", None)
    num_cut = responder.num_cut if responder else 0
    group = loaded["groups"].get(task.task)
    with _without_environment():
        found = simple_evaluate(
            model=model,
            tasks=[group] if group is not None else list(loaded["tasks"].values()),
            task_manager=loaded["manager"],
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            apply_chat_template=_is_chat(task, model),
            fewshot_as_multiturn=_is_chat(task, model),
            confirm_run_unsafe_code=config.run_code,
            fewshot_random_seed=config.seed,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert found is not None
    after = dict(vars(speed)) if speed else {}
    used = {key: round(after[key] - before[key], 6) for key in after}
    num_cut = responder.num_cut - num_cut if responder else 0
    return _summary(task, found) | {"speed": used, "num_cut": num_cut}


@contextlib.contextmanager
def _without_environment() -> Iterator[None]:
    """The harness runs ``pip list`` and more for every task; our report says what it needs once."""
    from lm_eval import evaluator

    found = evaluator.add_env_info
    evaluator.add_env_info = lambda results: None
    try:
        yield
    finally:
        evaluator.add_env_info = found


def _check_metric(task: EvaluatedTask, members: Iterable[Any]) -> None:
    """Refuses a metric that no member of the task gives, before any work."""
    found = {
        f"{metric},{name}"
        for member in members
        for metric in member.aggregation()
        for name in [f["name"] for f in member.config.filter_list or ()] or ["none"]
    }
    if task.metric not in found:
        raise ValueError(f"{task.task} has no metric {task.metric}: choose from {sorted(found)}")


def _set_sampling(model: Any, task: EvaluatedTask) -> None:
    """Options of the task for our model; one of the harness's own keeps the task's."""
    options = getattr(model, "options", None)
    if options is None:
        return
    sampling = dict(task.sampling)
    if task.mdlm_block_size and model.described.objective == "mdlm":
        sampling["block_size"] = task.mdlm_block_size
    options.sampling.clear()
    options.sampling.update(sampling)


def _is_chat(task: EvaluatedTask, model: Any) -> bool:
    if task.chat != "auto":
        return task.chat
    described = getattr(model, "described", None)
    tokenizer = described.tokenizer if described else getattr(model, "tokenizer", None)
    return tokenizer is None or bool(tokenizer.chat_template)


def _summary(task: EvaluatedTask, found: dict[str, Any]) -> dict[str, Any]:
    """The number, and one row per document."""
    name, metric_filter = task.metric.split(",")
    values = found["results"].get(task.task) or found["groups"][task.task]
    rows = [
        {
            "task": subtask,
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            "prompt_hash": sample["prompt_hash"],
            "answer": sample["resps"][0][0],
            "value": _value(sample[name]),
            "nats_stderr": _nats_stderr(sample["resps"]),
        }
        for subtask, samples in found["samples"].items()
        for sample in samples
        if sample["filter"] == metric_filter and name in sample
    ]
    return {
        "metric": task.metric,
        "value": values[task.metric],
        "monte_carlo_stderr": _monte_carlo_stderr(name, values[task.metric], rows),
        "num_documents": len(rows),
        "versions": found["versions"],
        "num_fewshot": found["n-shot"],
        "data": data_fingerprint(row["doc_hash"] for row in rows),
        "higher_is_better": _direction(found, name),
        "samples": rows,
    }


def _nats_stderr(responses: list[list[Any]]) -> float | None:
    """Standard error of a document's log-likelihoods over their draws; None without any."""
    found = [one[0] if isinstance(one, tuple) else one for (one, *_) in responses]
    return root_of_squares(getattr(one, "stderr", None) for one in found)


def _monte_carlo_stderr(metric: str, value: float, rows: list[dict[str, Any]]) -> float | None:
    """Of the task's number; None for a group, whose number is a mean of its tasks'."""
    if len({row["task"] for row in rows}) != 1:
        return None
    stderrs = [row["nats_stderr"] for row in rows]
    return monte_carlo_stderr(metric, value, [row["value"] for row in rows], stderrs)


def _direction(found: dict[str, Any], name: str) -> bool:
    known = [task[name] for task in found["higher_is_better"].values() if name in task]
    return bool(known[0]) if known else True


def _value(value: Any) -> Any:
    """A score as JSON: a number, or the terms of a ratio of sums."""
    return list(map(float, value)) if isinstance(value, tuple | list) else float(value)


@contextlib.contextmanager
def _data_from(directory: str | None) -> Iterator[None]:
    """Within it, OWNER/NAME is a directory below `directory`, which `datasets` looks for first."""
    if directory is None:
        yield
        return
    if not os.path.isdir(directory):
        raise ValueError(f"datasets_dir={directory} does not exist")
    with contextlib.chdir(directory):
        yield
