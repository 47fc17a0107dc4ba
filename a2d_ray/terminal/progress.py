"""One progress bar: on a terminal it moves, in a pipe it is a line now and then."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from a2d_ray.terminal.streams import errors, tell

PIPE_PERIOD_S = 15.0  # between two lines in a pipe


class Progress:
    """How far something is, while a ``with`` block runs.

    Args:
        name: what is going on.
        total: units in all; None: nobody can tell.
        unit: of what, in singular.
        start: units that were done before.
        is_quiet: shows nothing.

    Attributes:
        num_done: units so far.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, *, start: int = 0, is_quiet: bool = False
    ) -> None:
        self.num_done = start
        self._name = name
        self._total = total
        self._unit = unit
        self._start = start
        self._is_quiet = is_quiet
        self._figures: dict[str, str] = {}
        self._bar: Any = None
        self._began = time.monotonic()
        self._shown_at = self._began
        self._shown: tuple[int, dict[str, str]] | None = None
        self._moved_at: tuple[float, int] | None = None  # the first time, and to what

    def __enter__(self) -> "Progress":
        if not self._is_quiet and errors().isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, initial=self._start, desc=self._name, unit=self._unit,
                file=errors(), dynamic_ncols=_has_width(), ncols=80, mininterval=0.2, smoothing=0.1,
            )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self._is_quiet and self._shown != (self.num_done, self._figures):
            self._show_line()

    def begin_at(self, num_done: int) -> None:
        """What was done before took no time now."""
        self._start = num_done
        self.num_done = num_done
        if self._bar is not None:
            self._bar.initial = num_done
            self._bar.n = num_done

    def move_to(self, num_done: int, figures: Mapping[str, str] | None = None) -> None:
        """Shows that so many units are done.

        Args:
            num_done: units.
            figures: to show beside, by name.
        """
        moved = num_done - self.num_done
        self.num_done = num_done
        self._figures = dict(figures or self._figures)
        if moved and self._moved_at is None:
            self._moved_at = (time.monotonic(), num_done)
        if self._bar is not None:
            self._bar.set_postfix(self._figures, refresh=False)
            self._bar.update(moved)
        elif not self._is_quiet and time.monotonic() - self._shown_at >= PIPE_PERIOD_S:
            self._show_line()

    def _show_line(self) -> None:
        self._shown_at = time.monotonic()
        self._shown = (self.num_done, self._figures)
        seconds = self._shown_at - self._began
        figures = "".join(f", {name} {value}" for name, value in self._figures.items())
        total = "" if self._total is None else f" of {self._total:,}"
        done = f"{self.num_done:,}{total} {self._unit}s{figures}"
        tell(f"{self._name}: {done}, {_clock(seconds)} so far{self._left()}")

    def _left(self) -> str:
        """Time for the rest, by what came after the first units: these may have had to wait."""
        if self._total is None or self._moved_at is None or self.num_done >= self._total:
            return ""
        since, start = self._moved_at
        if self.num_done == start:
            return ""
        per_unit = (time.monotonic() - since) / (self.num_done - start)
        return f", {_clock(per_unit * (self._total - self.num_done))} left"


def following(
    items: Iterable[Any],
    name: str,
    total: int | None,
    unit: str,
    units_of: Callable[[Any], int] = lambda item: 1,
) -> Iterator[Any]:
    """The items, while a progress bar counts them, or the units of each; see `Progress`."""
    with Progress(name, total, unit) as progress:
        for item in items:
            yield item
            progress.move_to(progress.num_done + units_of(item))


def _has_width() -> bool:
    """Whether the terminal says how wide it is; one of a script may say 0."""
    return os.get_terminal_size(errors().fileno()).columns > 0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
