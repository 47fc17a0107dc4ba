"""Plots of a sweep: parallel coordinates, and NELBO over the learning rate per block size."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a2d_ray.sweeps.points import TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARALLEL_FILE = "parallel.png"
LR_FILE = "nelbo-lr.png"


def write_plots(rows: list[TrialRow], metric: str, directory: Path) -> None:
    """Draws what the trials with a result allow; without any, nothing."""
    shown = [row for row in rows if _is_finite(getattr(row, metric))]
    if shown:
        _figure(directory / PARALLEL_FILE, lambda axes: draw_parallel(axes, shown, metric))
    with_lr = [row for row in shown if "optim.lr" in row.point and _is_finite(row.nelbo)]
    if with_lr:
        _figure(directory / LR_FILE, lambda axes: draw_nelbo_by_lr(axes, with_lr))


def draw_parallel(axes: "Axes", rows: list[TrialRow], metric: str) -> None:
    """A line per trial through its values; the darker, the better (NELBO: of its block size)."""
    import matplotlib

    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    columns = [_scale([row.point.get(key) for row in rows]) for key in keys]
    columns.append(_scale([getattr(row, metric) for row in rows]))
    colors = matplotlib.colormaps["viridis_r"]
    goodness = _goodness(rows, metric)
    for i, good in sorted(enumerate(goodness), key=lambda pair: pair[1]):  # the best on top
        line = [column[0][i] for column in columns]
        axes.plot(range(len(columns)), line, color=colors(good), linewidth=1 + 1.5 * good)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color="0.7", linewidth=0.8, zorder=0)
        for y, text in ticks:
            axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(columns)), [*keys, metric])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    peers = " of those with its block size" if metric == "nelbo" else ""
    axes.set_title(f"{len(rows)} trials; dark: better {metric}{peers}")


def draw_nelbo_by_lr(axes: "Axes", rows: list[TrialRow]) -> None:
    """Held-out NELBO over the learning rate, a colour per block size."""
    for size in sorted({row.block_size for row in rows}):
        mine = sorted((r for r in rows if r.block_size == size), key=lambda r: r.point["optim.lr"])
        label = "mdlm" if size == 0 else f"block {size}"
        (line,) = axes.plot(
            [row.point["optim.lr"] for row in mine],
            [row.nelbo or 0.0 for row in mine],
            linewidth=0.8,
            alpha=0.6,
        )
        for status, face in (("finished", line.get_color()), ("stopped", "none")):
            part = [row for row in mine if row.status == status]
            if part:
                axes.scatter(
                    [row.point["optim.lr"] for row in part],
                    [row.nelbo or 0.0 for row in part],
                    facecolors=face,
                    edgecolors=line.get_color(),
                    label=label if status == "finished" else f"{label}, stopped early",
                )
    axes.set(xscale="log", xlabel="optim.lr", ylabel="held-out NELBO, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()


def _goodness(rows: list[TrialRow], metric: str) -> list[float]:
    """0 for the worst to 1 for the best, within a block size where only that compares."""
    groups = [row.block_size if metric == "nelbo" else 0 for row in rows]
    sign = -1 if metric == "nelbo" else 1
    values = [sign * getattr(row, metric) for row in rows]
    good = []
    for group, value in zip(groups, values, strict=True):
        peers = [v for g, v in zip(groups, values, strict=True) if g == group]
        span = max(peers) - min(peers)
        good.append((value - min(peers)) / span if span else 1.0)
    return good


def _figure(path: Path, draw: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=120)


def _scale(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights 0..1 of values, and ticks: logarithmic where they span decades, else by rank."""
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not is_number:
        kinds = sorted(set(map(str, values)))
        heights = {kind: i / max(1, len(kinds) - 1) for i, kind in enumerate(kinds)}
        return [heights[str(v)] for v in values], [(h, kind) for kind, h in heights.items()]
    low = min(values)
    high = max(values)
    is_log = low > 0 and high / low > 5
    a, b = (math.log(low), math.log(high)) if is_log else (low, high)
    span = (b - a) or 1.0
    points = [((math.log(v) if is_log else v) - a) / span for v in values]
    distinct = sorted(set(values))
    ticks = distinct if len(distinct) <= 6 else [low, high]
    return points, [(((math.log(t) if is_log else t) - a) / span, f"{t:.3g}") for t in ticks]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
