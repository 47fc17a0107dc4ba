"""The speed-quality frontier: one task under several decoding rules."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from a2d_ray.config import FrontierConfig
from a2d_ray.evaluation.report import speed, write_report
from a2d_ray.evaluation.statistics import estimate
from a2d_ray.evaluation.suite import build_model, run_suite

ALPHA = 3.0
TOLERANCE = 5.0  # percentage points below the slowest point that still count


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting.

    Attributes:
        name: of the setting.
        score: 0 to 1, with `low` and `high` of its 95 % interval.
        tokens_per_forward, tokens_per_s: of its answers.
    """

    name: str
    score: float
    low: float
    high: float
    tokens_per_forward: float
    tokens_per_s: float


def run_frontier(config: FrontierConfig) -> tuple[list[Point], float]:
    """Measures every point; returns them by speed, and their AUP.

    Answers are not read from a cache: their speed is what is measured.
    """
    model = build_model(config.evaluate)
    model.responder.forget()
    (task,) = config.evaluate.tasks
    points = []
    for index, sampling in enumerate(config.points):
        own = task.model_copy(update={"sampling": task.sampling | sampling})
        run = config.evaluate.model_copy(
            update={"tasks": [own], "name": f"{config.evaluate.name}-{index}"}
        )
        report = run_suite(run, model=model)
        write_report(report, Path(config.evaluate.output) / run.name)
        points.append(_point(sampling, report["tasks"][task.task]))
    points.sort(key=lambda point: point.tokens_per_forward)
    return points, accuracy_under_parallelism(
        [(point.tokens_per_forward, 100 * point.score) for point in points]
    )


def _point(sampling: dict[str, Any], task: dict[str, Any]) -> Point:
    tokens_per_forward, tokens_per_s = speed(task)
    found = estimate([row["value"] for row in task["samples"]])
    return Point(
        name=" ".join(str(value) for value in sampling.values()),
        score=found.value,
        low=found.low,
        high=found.high,
        tokens_per_forward=tokens_per_forward or 0.0,
        tokens_per_s=tokens_per_s or 0.0,
    )


def accuracy_under_parallelism(points: Sequence[tuple[float, float]]) -> float:
    """AUP of (tokens per forward, accuracy in percent) points.

    rho_1 y_1 + sum_i (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2 over the points
    with y_i >= y_1 - 5, where W(y) = min(exp(-3 (1 - y / y_max)), 1).

    Source: d3LLM (arXiv 2601.07568).
    """
    ordered = sorted(points)
    kept = [point for point in ordered if point[1] >= ordered[0][1] - TOLERANCE]
    best = max(accuracy for _, accuracy in ordered)

    def weighed(accuracy: float) -> float:
        return accuracy * math.exp(-ALPHA * (1 - accuracy / best)) if best else 0.0

    area = kept[0][0] * kept[0][1]
    for (rho_before, y_before), (rho, y) in pairwise(kept):
        area += (rho - rho_before) * (weighed(y) + weighed(y_before)) / 2
    return area


def write_frontier(points: Sequence[Point], aup: float, title: str, directory: Path) -> str:
    """Writes ``frontier.md``, ``frontier.json`` and ``frontier.png``; returns the Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# {title}",
        "",
        f"AUP {aup:.1f}",
        "",
        "| setting | score | 95 % interval | TPF | tokens/s |",
        "|---|---:|---|---:|---:|",
    ]
    lines += [
        f"| {p.name} | {p.score:.4f} | {p.low:.4f} to {p.high:.4f} | "
        f"{p.tokens_per_forward:.2f} | {p.tokens_per_s:.1f} |"
        for p in points
    ]
    text = "\n".join(lines) + "\n"
    (directory / "frontier.md").write_text(text)
    values = {"aup": aup, "points": [asdict(point) for point in points]}
    (directory / "frontier.json").write_text(json.dumps(values, indent=1))
    _plot(points, title, directory / "frontier.png")
    return text


def _plot(points: Sequence[Point], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.errorbar(
        [p.tokens_per_forward for p in points],
        [p.score for p in points],
        yerr=[[p.score - p.low for p in points], [p.high - p.score for p in points]],
        marker="o",
        capsize=3,
    )
    for point in points:
        axes.annotate(point.name, (point.tokens_per_forward, point.score), fontsize=7)
    axes.set(xlabel="tokens per forward", ylabel="score", title=title)
    figure.savefig(path, dpi=120)
