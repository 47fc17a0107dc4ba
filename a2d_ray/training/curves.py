"""The curves of a run as a picture."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#1f4e79"
_SOFT = "#9db8d2"
_ACCENT = "#c8553d"
Lines = list[dict[str, Any]]


def draw_curves(lines: Lines, title: str = "") -> bytes:
    """PNG of loss and held-out NELBO, learning rate, speed and gradient norm over steps.

    Args:
        lines: of ``metrics.jsonl``.
        title: above the panels.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flatten()
    steps = [line for line in lines if "loss" in line]
    _losses(panels[0], steps, [line for line in lines if "eval/nelbo" in line])
    _curve(panels[1], steps, "grad_norm", "gradient norm, before clipping", is_noisy=True)
    _curve(panels[2], steps, "lr", "learning rate", is_noisy=False)
    _curve(panels[3], steps, "tokens_per_s", "tokens per second, all streams", is_noisy=True)
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    for axes in panels[2:]:
        axes.set_xlabel("optimizer step")
    figure.suptitle(title, fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def smoothed(values: list[float], window: int) -> list[float]:
    """Mean of each value and up to window - 1 before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = range(1, len(sums))
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in ends]


def _losses(axes: Axes, steps: Lines, evaluations: Lines) -> None:
    _curve(axes, steps, "loss", "nats per token", is_noisy=True, label="training loss")
    axes.plot(
        [line["step"] for line in evaluations],
        [line["eval/nelbo"] for line in evaluations],
        marker="o",
        markersize=4,
        color=_ACCENT,
        label="held-out NELBO",
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _curve(
    axes: Axes, steps: Lines, key: str, title: str, *, is_noisy: bool, label: str | None = None
) -> None:
    """One figure of the steps, and its running mean where it is noisy."""
    steps = [line for line in steps if key in line]
    x = [line["step"] for line in steps]
    values = [line[key] for line in steps]
    window = max(1, len(values) // 40) if is_noisy else 1
    if window > 1:
        axes.plot(x, values, color=_SOFT, linewidth=0.7)
    axes.plot(x, smoothed(values, window), color=_INK, linewidth=1.6, label=label)
    axes.set_title(title, fontsize=10, loc="left")
    if values and key != "lr":
        axes.set_ylim(bottom=0)
