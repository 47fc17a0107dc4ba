"""The pictures of the docs, drawn from the tables of docs/benchmarks: python -m benchmarks.pictures

The loss curve is drawn from docs/quickstart.csv, of the run whose transcript is beside it; rewards
from docs/rl.csv.

Each is written twice, for light and for dark pages.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
PALETTES = {
    "": {"ink": "#1f2328", "soft": "#8c959f", "main": "#0969da", "other": "#bc4c00"},
    "-dark": {"ink": "#e6edf3", "soft": "#6e7681", "main": "#58a6ff", "other": "#f0883e"},
}
SMOOTHED = 10  # steps of reinforcement learning
Colours = dict[str, str]
Row = dict[str, str]


def table(page: str, first: str) -> list[Row]:
    """Rows of the table of a page whose head begins with `first`, by the names of columns."""
    lines = (DOCS / "benchmarks" / f"{page}.md").read_text().splitlines()
    start = next(
        n for n, line in enumerate(lines) if line.startswith("|") and _cells(line)[0] == first
    )
    names = _cells(lines[start])
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, _cells(line), strict=True)))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def number(cell: str) -> float:
    """The first number of a cell; per cent as a share."""
    found = float(re.search(r"[\d.]+", cell.replace(",", ""))[0])  # type: ignore[index]
    return found / 100 if "%" in cell else found


def frontier(axes: Axes, colours: Colours) -> None:
    """Exact match over tokens per second, a point per rule."""
    rows = table("sampling", "rule")
    for row in rows:
        is_ar = row["rule"].startswith("AR")
        colour = colours["other"] if is_ar else colours["main"]
        place = (number(row["tokens/s, 32 at a time"]), number(row["exact match"]))
        low, high = (int(part) / 100 for part in re.findall(r"\d+", row["95 % interval"]))
        axes.plot([place[0]] * 2, [low, high], color=colours["soft"], linewidth=0.8, zorder=1)
        axes.plot(*place, "D" if is_ar else "o", color=colour, markersize=9, zorder=2)
        if is_ar or row["rule"].split()[0] in ("threshold", "steps", "prefix"):
            axes.annotate(row["rule"], place, xytext=(9, 5), textcoords="offset points",
                          fontsize=11, color=colours["ink"])  # fmt: skip
    axes.set(xlabel="tokens per second, 32 at a time", ylabel="exact match", ylim=(0.35, 1))
    axes.set_title("Sorting tasks: diffusion rules against plain AR fine-tuning, one CPU core")


def speculation(axes: Axes, colours: Colours) -> None:
    """Speed of rule `speculate` in multiples of rule `ar`, by clients."""
    tokens = [row for row in table("speculation", "") if "CPU second" in next(iter(row.values()))]
    bars = [
        (f"1 client,\n{next(iter(row.values())).split(',')[0]}",
         number(row["speculate"]) / number(row["ar"]))
        for row in tokens
    ]  # fmt: skip
    for row in table("speculation", "clients"):
        bars.append((f"{row['clients']} clients", number(row["times"])))
    names, values = zip(*bars, strict=True)
    drawn = axes.bar(names, values, color=colours["main"], width=0.6)
    axes.bar_label(drawn, fmt="%.2f ×", padding=4, fontsize=13, color=colours["ink"])
    axes.axhline(1, color=colours["other"], linewidth=2)
    axes.set(ylabel="times as fast as rule ar", ylim=(0, 2.7))
    axes.set_title(
        "Self-speculation against the AR mode of the same weights, on a CPU: equal answers"
    )


def loss(axes: Axes, colours: Colours) -> None:
    """Training loss and held-out NELBO of the quickstart, and how many tokens a draft gives."""
    with (DOCS / "quickstart.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["loss"]]
    tested = [row for row in rows if row["held_out_nelbo"]]
    places = [int(row["step"]) for row in tested]
    bounds = [float(row["held_out_nelbo"]) for row in tested]
    losses = [float(row["loss"]) for row in steps]
    axes.plot([int(row["step"]) for row in steps], losses, color=colours["main"], linewidth=2)
    axes.plot(places, bounds, "D--", color=colours["other"], markersize=9, linewidth=1.2)
    for place, bound, row in zip(places, bounds, tested, strict=True):
        words = f"{float(row['accepted_length']):.1f} tokens\nper forward"
        axes.annotate(
            words,
            (place, bound),
            xytext=(6, 9 if place == 0 else 58),
            textcoords="offset points",
            fontsize=13,
        )
    axes.annotate("held-out NELBO", (places[0], bounds[0]), xytext=(100, -4),
                  textcoords="offset points", color=colours["other"])  # fmt: skip
    axes.annotate("training loss", (int(steps[4]["step"]), losses[4]), xytext=(14, 10),
                  textcoords="offset points", color=colours["main"])  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="nats per token", ylim=(0, 10.5))
    axes.set_xlim(-2, places[-1] * 1.14)
    axes.set_title("The quickstart's seven minutes on two CPU cores")


def rewards(axes: Axes, colours: Colours) -> None:
    """Right answers of reinforcement learning: held out, and of the roll-outs, a line per seed."""
    with (DOCS / "rl.csv").open() as file:
        rows = list(csv.DictReader(file))
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        drawn = [row for row in own if row["roll_outs"]]
        axes.plot([int(row["step"]) for row in drawn],
                  _smooth([float(row["roll_outs"]) for row in drawn]),
                  color=colours["main"], linewidth=1.2, alpha=0.7)  # fmt: skip
        tested = [row for row in own if row["held_out"]]
        axes.plot([int(row["step"]) for row in tested], [float(row["held_out"]) for row in tested],
                  "D--", color=colours["other"], markersize=7, linewidth=1.2)  # fmt: skip
    axes.plot([], [], "D--", color=colours["other"], label="held-out tasks, greedy")
    axes.plot([], [], color=colours["main"], label=f"roll-outs, mean of {SMOOTHED} steps")
    axes.legend(frameon=False, loc="lower right", labelcolor=colours["ink"])
    axes.set(xlabel="update", ylabel="share of right answers", ylim=(0.2, 0.9))
    axes.set_title("Reinforcement learning on sorting after the quickstart, a line per seed")


def _smooth(values: list[float]) -> list[float]:
    """Means of each value and those before it."""
    parts = [values[max(0, end - SMOOTHED) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]


PICTURES = {"frontier": frontier, "speculation": speculation, "loss": loss, "rl": rewards}


def draw(name: str, colours: Colours, path: Path) -> None:
    """Writes a picture; equal tables give equal files."""
    ink = colours["ink"]
    style: Any = {
        "svg.hashsalt": name, "svg.fonttype": "none",
        "font.size": 13, "axes.titlesize": 14, "text.color": ink,
        "axes.labelcolor": ink, "axes.edgecolor": colours["soft"], "xtick.color": ink,
        "ytick.color": ink, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlelocation": "left",
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(9, 4.8), layout="constrained")
        axes = figure.subplots()
        PICTURES[name](axes, colours)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def written() -> Iterator[Path]:
    """Draws all; yields their paths."""
    for name in PICTURES:
        for suffix, colours in PALETTES.items():
            path = DOCS / "images" / f"{name}{suffix}.svg"
            draw(name, colours, path)
            yield path


if __name__ == "__main__":
    for drawn in written():
        print(drawn)  # noqa: T201
