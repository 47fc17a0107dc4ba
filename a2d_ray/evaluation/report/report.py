"""Reports: one JSON with everything to repeat it, Markdown to read, W&B when configured."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from a2d_ray.config import EvaluateConfig
from a2d_ray.evaluation.report.statistics import Comparison, compare, estimate

CONDITIONS = {"versions": "version", "num_fewshot": "num_fewshot", "likelihood": "likelihood"}
"""What two reports of a task must have in common, and the word for it."""


def write_report(report: dict[str, Any], directory: str | Path) -> Path:
    """Writes ``report.json`` and ``report.md``; returns the JSON's path. Whole or not at all."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.md", markdown(report)), ("report.json", json.dumps(report))):
        half = directory / f".{name}.{os.getpid()}"
        half.write_text(text + "\n")
        half.replace(directory / name)
    return directory / "report.json"


def read_report(path: str | Path) -> dict[str, Any]:
    """A report from its JSON file.

    Raises:
        ValueError: no such file, or something else.
    """
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no report of job evaluate: {error}") from error
    if not isinstance(report, dict) or report.get("format") != 1 or "tasks" not in report:
        raise ValueError(f"{path} is no report of job evaluate (format 1)")
    return report


def markdown(report: dict[str, Any]) -> str:
    """The numbers as a table, with what they were measured on."""
    lines = [
        f"# {report['name']}",
        "",
        f"{report['model']['path']} · weights `{str(report['model'].get('weights'))[:12]}` · "
        f"commit `{str(report['commit'])[:12]}`{' (changed)' if report.get('dirty') else ''} · "
        f"{report['date']} · {report['seconds']:.0f} s",
        "",
        "| task | metric | value | 95 % interval | error of draws | documents | TPF | tokens/s |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, task in report["tasks"].items():
        found = estimate([row["value"] for row in task["samples"]])
        tpf, per_s = speed(task)
        lines.append(
            f"| {name} | {task['metric']} | {task['value']:.4f} | {found.interval()} | "
            f"{_error_of_draws(task)} | {task['num_documents']} | "
            f"{_number(tpf)} | {_number(per_s)} |"
        )
    return "\n".join(lines)


def speed(task: dict[str, Any]) -> tuple[float | None, float | None]:
    """Tokens per forward and per second of the answers that were not read from the cache."""
    used = task.get("speed") or {}
    forwards = used.get("num_forwards")
    seconds = used.get("seconds")
    tokens = used.get("num_tokens", 0)
    return (
        tokens / forwards if forwards else None,
        tokens / seconds if seconds and tokens else None,
    )


def compare_reports(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Comparison]:
    """Every task that both reports measured by the same metric, on the documents of both.

    Raises:
        ValueError: they share no task, metric and document.
    """
    found = {}
    for name in first["tasks"].keys() & second["tasks"].keys():
        one = first["tasks"][name]
        other = second["tasks"][name]
        if one["metric"] != other["metric"]:
            continue
        left = _by_document(one)
        right = _by_document(other)
        shared = sorted(left.keys() & right.keys())
        if shared:
            found[name] = compare([left[key] for key in shared], [right[key] for key in shared])
    if not found:
        raise ValueError("the reports share no task with the same metric and documents")
    return dict(sorted(found.items()))


def differing_conditions(
    first: dict[str, Any], second: dict[str, Any], tasks: Iterable[str]
) -> list[str]:
    """What makes a difference between two reports more than one between their models, a line each:
    prompts, versions, examples and likelihoods of the tasks that they share."""
    found = []
    for name in tasks:
        one = first["tasks"][name]
        other = second["tasks"][name]
        for key, word in CONDITIONS.items():
            if key in one and key in other and one[key] != other[key]:
                left, right = (_condition(task[key], name) for task in (one, other))
                found.append(f"{name}: {word} {left} and {right}")
        left = _by_document(one, "prompt_hash")
        right = _by_document(other, "prompt_hash")
        shared = left.keys() & right.keys()
        num_other = sum(left[key] != right[key] for key in shared)
        if num_other:
            found.append(f"{name}: other prompts in {num_other} of {len(shared)} documents")
    return found


def _condition(values: Any, name: str) -> Any:
    """Of a task, or of all in its group."""
    return values.get(name, values) if isinstance(values, dict) else values


def _error_of_draws(task: dict[str, Any]) -> str:
    if task.get("likelihood") == "ar":
        return "exact (AR)"
    return _number(task.get("monte_carlo_stderr"), 4)


def _by_document(task: dict[str, Any], key: str = "value") -> dict[tuple[str, str, int], Any]:
    """Values by document; equal documents of a task are told apart by their index."""
    return {(row["task"], row["doc_hash"], row["doc_id"]): row[key] for row in task["samples"]}


def comparison_markdown(
    names: Sequence[str], comparisons: dict[str, Comparison], warnings: Sequence[str] = ()
) -> str:
    """The comparison as a table, with what differs besides the models."""
    lines = [
        f"A = {names[0]}, B = {names[1]}",
        "",
        "| task | A | B | B - A | 95 % interval | p | test | documents |",
        "|---|---:|---:|---:|---|---:|---|---:|",
    ]
    for name, found in comparisons.items():
        change = found.difference
        lines.append(
            f"| {name} | {found.first.value:.4f} | {found.second.value:.4f} | "
            f"{change.value:+.4f} | {change.interval('+.4f')} | "
            f"{found.p_value:.3g} | {found.test} | {found.num_documents} |"
        )
    if warnings:
        lines += ["", "Not measured alike:", "", *(f"- {warning}" for warning in warnings)]
    return "\n".join(lines)


def log_to_wandb(report: dict[str, Any], config: EvaluateConfig, directory: Path) -> None:
    """The numbers and the JSON as one W&B run, if a mode is set."""
    if config.wandb.mode == "disabled":
        return
    import wandb

    with wandb.init(
        mode=config.wandb.mode,
        project=config.wandb.project,
        entity=config.wandb.entity,
        name=config.name,
        job_type="evaluation",
        dir=str(directory),
        config=report["config"] | {"commit": report["commit"], "model": report["model"]},
    ) as run:
        run.log({f"evaluation/{name}": task["value"] for name, task in report["tasks"].items()})
        run.save(str(directory / "report.json"), base_path=str(directory), policy="now")


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
