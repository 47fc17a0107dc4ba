"""Figures, the estimates that they are compared with, and the table of both."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LARGEST = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        part: of the check.
        name: what was measured.
        value: the number; None: the part was skipped, see `note`.
        unit: of value and estimate.
        estimate: what was computed on paper for an H100; None: nothing was.
        note: why it was skipped, or what else there is to know.
    """

    part: str
    name: str
    value: float | None
    unit: str
    estimate: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over estimated; None without either."""
        if self.value is None or not self.estimate:
            return None
        return self.value / self.estimate

    def line(self) -> str:
        """As one line of JSON."""
        values: dict[str, Any] = dict(vars(self))
        return json.dumps(values | {"ratio": self.ratio})


def largest_ratios(figures: Iterable[Figure]) -> list[Figure]:
    """Figures that are farthest from their estimates, in either direction; the farthest first."""
    distances = [
        (abs(math.log(figure.ratio)) if figure.ratio > 0 else math.inf, figure)
        for figure in figures
        if figure.ratio is not None
    ]
    distances.sort(key=lambda each: -each[0])
    return [figure for _, figure in distances[:LARGEST]]


def format_table(figures: list[Figure]) -> str:
    """The table; its last lines are the largest ratios, which is where to look."""
    rows = [("part", "figure", "measured", "estimated", "unit", "ratio", "")]
    rows += [
        (
            figure.part,
            figure.name,
            _number(figure.value),
            _number(figure.estimate),
            figure.unit,
            _number(figure.ratio),
            figure.note,
        )
        for figure in figures
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    far = largest_ratios(figures)
    if far:
        lines += ["", "farthest from the estimates (measured / estimated):"]
        lines += [f"  {f.part}, {f.name}: {_number(f.ratio)}" for f in far]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
