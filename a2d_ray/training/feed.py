"""The steps of a rank, each made ready while the one before it runs."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReadyStep:
    """What a rank knows of an optimizer step before it runs.

    Attributes:
        micros: arguments of the module's forward, by micro-batch, on the host.
        counts: of this rank, see `metrics.StepCounter`.
        limit: largest corrupted share of a block.
    """

    micros: list[tuple[Any, ...]]
    counts: Tensor
    limit: float


class StepFeed:
    """Pulls the rows of steps and makes them ready, in order.

    Rows are pulled in the caller's thread, where what they come from may look at the step that is
    over. A thread makes them ready; an error in it is raised where the step is taken. Leaving the
    context ends the thread. A step that was not taken is lost, and a run that goes on makes it
    again: `make_ready` is a function of its arguments.

    Args:
        batches: rows of each step.
        make_ready: (rows, step) -> the step.
        first: step of the first rows.
        looks_ahead: whether `begin` is to do anything.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        make_ready: Callable[[Any, int], ReadyStep],
        first: int,
        *,
        looks_ahead: bool,
    ) -> None:
        self._batches = batches
        self._make_ready = make_ready
        self._step = first
        self._pool = ThreadPoolExecutor(1, "a2d-steps") if looks_ahead else None
        self._begun: Future[ReadyStep] | None = None
        self._ahead: ReadyStep | None = None
        self.rows_s = self.waited_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self) -> None:
        """Pulls the rows of the next step and has them made ready beside what runs now."""
        if self._pool is not None and (batch := self._pull()) is not None:
            self._begun = self._pool.submit(self._make_ready, batch, self._step)
            self._step += 1

    def ahead(self) -> ReadyStep | None:
        """The step that was begun, ready; None: none was. It is still to be taken."""
        if self._begun is not None:
            started = time.perf_counter()
            self._ahead = self._begun.result()
            self._begun = None
            self.waited_s += time.perf_counter() - started
        return self._ahead

    def take(self) -> ReadyStep | None:
        """The next step, ready; None: rows have ended."""
        ready, self._ahead = self.ahead(), None
        if ready is None and (batch := self._pull()) is not None:
            started = time.perf_counter()
            ready = self._make_ready(batch, self._step)
            self.waited_s += time.perf_counter() - started
            self._step += 1
        return ready

    def spent(self) -> tuple[float, float]:
        """Seconds of waiting for rows, and for steps to be ready, since the last call."""
        spent = self.rows_s, self.waited_s
        self.rows_s = self.waited_s = 0.0
        return spent

    def _pull(self) -> Any:
        started = time.perf_counter()
        batch = next(self._batches, None)
        self.rows_s += time.perf_counter() - started
        return batch
