"""The curves of a run as a picture.

Every worker imports this and one draws, so matplotlib is imported by drawing.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#1f4e79"
_SOFT = "#9db8d2"
_ACCENT = "#c8553d"
Lines = list[dict[str, Any]]


def draw_curves(lines: Lines, title: str = "") -> bytes:
    """PNG of loss and held-out NELBO, learning rate, speed and gradient norm over steps.

    With drafts also of the accepted length over steps, and of draft agreement by offset; in
    reinforcement learning, of the reward.

    Args:
        lines: of ``metrics.jsonl``.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    drafts = [line for line in lines if "eval/accepted_length" in line]
    rewards = [line for line in lines if "rl/reward" in line]
    num_rows = 3 if drafts or rewards else 2
    figure = Figure(figsize=(11, 3.5 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, 2).flatten()
    steps = [line for line in lines if "loss" in line]
    _losses(panels[0], steps, [line for line in lines if "eval/nelbo" in line])
    _curve(panels[1], steps, "grad_norm", "gradient norm, before clipping", is_noisy=True)
    _curve(panels[2], steps, "lr", "learning rate", is_noisy=False)
    _curve(panels[3], steps, "tokens_per_s", "tokens per second, all streams", is_noisy=True)
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    for axes in panels:
        axes.set_xlabel("optimizer step")
    if drafts:
        _accepted_length(panels[4], drafts)
    if rewards:
        _rewards(panels[5], rewards, [line for line in lines if "eval/reward" in line])
    elif drafts:
        _agreement(panels[5], drafts)
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
    _held_out(axes, evaluations, "eval/nelbo", "held-out NELBO")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _rewards(axes: Axes, steps: Lines, evaluations: Lines) -> None:
    _curve(axes, steps, "rl/reward", "reward", is_noisy=True, label="roll-outs")
    _held_out(axes, evaluations, "eval/reward", "held out, greedy")
    axes.legend(frameon=False)


def _held_out(axes: Axes, evaluations: Lines, key: str, label: str) -> None:
    axes.plot(
        [line["step"] for line in evaluations],
        [line[key] for line in evaluations],
        marker="o",
        markersize=4,
        color=_ACCENT,
        label=label,
    )


def _accepted_length(length: Axes, evaluations: Lines) -> None:
    length.plot(
        [line["step"] for line in evaluations],
        [line["eval/accepted_length"] for line in evaluations],
        marker="o",
        markersize=4,
        color=_ACCENT,
    )
    length.set_title("accepted length, tokens per forward", fontsize=10, loc="left")
    length.set_ylim(bottom=1)


def _agreement(by_offset: Axes, evaluations: Lines) -> None:
    """By offset in a block, at the first and the last evaluation."""
    for line, color in ((evaluations[0], _SOFT), (evaluations[-1], _INK)):
        prefix = "eval/draft_agreement_"
        shares = {int(k.removeprefix(prefix)): v for k, v in line.items() if k.startswith(prefix)}
        by_offset.plot(
            list(shares), list(shares.values()), color=color, marker="o", markersize=3,
            label=f"step {line['step']}",
        )  # fmt: skip
    by_offset.set_title("drafts that agree with the AR mode, by offset", fontsize=10, loc="left")
    by_offset.set(ylim=(0, 1), xlabel="offset in the block")
    by_offset.legend(frameon=False)


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
