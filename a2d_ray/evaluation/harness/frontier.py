"""The speed-quality frontier: one task under several decoding rules."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from a2d_ray.config import AR_RULES, EvaluateConfig, FrontierConfig, OptionError, override
from a2d_ray.config.layers import always, validate
from a2d_ray.evaluation.harness.suite import build_model, run_suite
from a2d_ray.evaluation.report.report import speed, write_report
from a2d_ray.evaluation.report.statistics import estimate
from a2d_ray.generation.decoding.ar_mode import check_ar_rule
from a2d_ray.generation.decoding.params import SamplingParams

ALPHA = 3.0
ONE_BY_ONE = "one by one"  # the setting of an AR model
AR_MODE = "AR mode"  # one line of the picture: the same answers at several speeds
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


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A model's points by speed, and their AUP; an AR model has one.

    Attributes:
        name: label of the curve in the picture and the table.
        points: settings that it was measured with.
        aup: accuracy under parallelism.
        left_out: names of settings that need an AR mode, where it has none.
    """

    name: str
    points: tuple[Point, ...]
    aup: float
    left_out: tuple[str, ...] = ()


def run_frontier(config: FrontierConfig) -> list[Curve]:
    """Measures the points of every model.

    Answers are not read from a cache: their speed is what is measured.
    """
    values = config.model_dump(exclude={"points", "compare"})
    curves = [_curve(EvaluateConfig.model_validate(values), config)]
    for other in config.compare:
        own = values | {"name": other.name, "kind": other.kind}
        own["model"] = values["model"] | {"path": other.path}
        curves.append(_curve(validate(EvaluateConfig, own, gives_way=always), config))
    return curves


def _curve(evaluate: EvaluateConfig, config: FrontierConfig) -> Curve:
    model = build_model(evaluate)
    is_ar = evaluate.kind == "ar"
    if not is_ar:
        model.responder.forget()
    (task,) = evaluate.tasks
    points = []
    left_out = []
    for index, sampling in enumerate([{}] if is_ar else config.points):
        own = task.model_copy(update={"sampling": override(task.sampling, sampling)})
        if not is_ar and not _can_decode(model, own.sampling):
            left_out.append(_name(sampling))
            continue
        run = evaluate.model_copy(update={"tasks": [own], "name": f"{evaluate.name}-{index}"})
        report = run_suite(run, model=model)
        write_report(report, Path(evaluate.output) / run.name)
        points.append(_point(sampling, report["tasks"][task.task]))
    if not points:
        raise OptionError(
            "points",
            left_out,
            f"need an AR mode, which {evaluate.name} does not have",
            "add others",
        )
    points.sort(key=lambda point: point.tokens_per_forward)
    aup = accuracy_under_parallelism([(p.tokens_per_forward, 100 * p.score) for p in points])
    return Curve(name=evaluate.name, points=tuple(points), aup=aup, left_out=tuple(left_out))


def _can_decode(model: Any, sampling: dict[str, Any]) -> bool:
    """Whether a model has what a point's rule needs."""
    params = SamplingParams(**sampling)
    if params.rule not in AR_RULES:
        return True
    try:
        check_ar_rule(params, model.described.contract)
    except OptionError:
        return False
    return True


def _name(sampling: dict[str, Any]) -> str:
    return " ".join(str(value) for value in sampling.values()) or ONE_BY_ONE


def _point(sampling: dict[str, Any], task: dict[str, Any]) -> Point:
    tokens_per_forward, tokens_per_s = speed(task)
    found = estimate([row["value"] for row in task["samples"]])
    return Point(
        name=_name(sampling),
        score=found.value,
        low=max(0.0, found.low),
        high=min(1.0, found.high),
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


def write_frontier(curves: Sequence[Curve], title: str, directory: Path) -> str:
    """Writes ``frontier.md``, ``frontier.json`` and ``frontier.png``; returns the Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# {title}",
        "",
        *(f"AUP of {curve.name}: {curve.aup:.1f}{_omissions(curve)}  " for curve in curves),
        "",
        "| model | setting | score | 95 % interval | TPF | tokens/s |",
        "|---|---|---:|---|---:|---:|",
    ]
    lines += [
        f"| {curve.name} | {p.name} | {p.score:.4f} | {p.low:.4f} to {p.high:.4f} | "
        f"{p.tokens_per_forward:.2f} | {p.tokens_per_s:.1f} |"
        for curve in curves
        for p in curve.points
    ]
    text = "\n".join(lines) + "\n"
    (directory / "frontier.md").write_text(text)
    values = {"curves": [asdict(curve) for curve in curves]}
    (directory / "frontier.json").write_text(json.dumps(values, indent=1))
    _plot(curves, title, directory / "frontier.png")
    return text


def _omissions(curve: Curve) -> str:
    return f"; without an AR mode, so without {', '.join(curve.left_out)}" if curve.left_out else ""


def _plot(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Score over tokens per forward and over tokens per second, a line per model and rule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panes = figure.subplots(1, 2, sharey=True)
    lines = [(c.name, *line) for c in curves for line in _by_rule(c.points)]
    for axes, key in zip(panes, ("tokens_per_forward", "tokens_per_s"), strict=True):
        for number, (model, rule, points) in enumerate(lines):
            axes.errorbar(
                [getattr(p, key) for p in points],
                [p.score for p in points],
                yerr=[[p.score - p.low for p in points], [p.high - p.score for p in points]],
                marker="os^Dvp*X"[number % 8],
                elinewidth=0.5,
                label=f"{model}: {rule}",
            )
            for point in points:
                place = (getattr(point, key), point.score)
                setting = point.name.removeprefix(rule).strip()
                axes.annotate(setting, place, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set(xlabel=key.replace("_", " ").replace("per s", "per second"), xlim=(0, None))
        axes.grid(alpha=0.3)
    panes[0].set(ylabel="score")
    panes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _by_rule(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """The points of each line: those of a rule, the first word of a setting's name; or of all that
    write the AR mode's answers."""
    found: dict[str, list[Point]] = {}
    for point in points:
        rule = point.name if point.name == ONE_BY_ONE else point.name.split(" ")[0]
        found.setdefault(AR_MODE if rule in AR_RULES else rule, []).append(point)
    return list(found.items())
