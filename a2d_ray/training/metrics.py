"""The figures of an optimizer step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.training.batches import COUNTS, StepBuilder
from a2d_ray.training.flops import StepFlops, attended_pairs, peak_flops
from a2d_ray.training.ranks import Ranks


class StepTimes:
    """Seconds of a step's parts on this rank: rows, forward and backward, optimizer.

    On CUDA events time what runs there, and nothing waits for them: they are read when the step is
    over.

    Args:
        started: `time.perf_counter` when the step before ended.
        device: where the model computes, such as ``cpu`` or ``cuda:0``.
    """

    def __init__(self, started: float, device: torch.device) -> None:
        self._started = started
        self._is_cuda = device.type == "cuda"
        self.data_s = self.compute_s = self.step_s = self._own_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begin = self._end = self._mark()

    def waited(self, rows_s: float, ready_s: float) -> None:
        """Adds seconds of waiting for rows, and for what is made of them."""
        self.data_s += rows_s
        self._own_s += rows_s + ready_s

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Within it, a forward pass runs."""
        begun, begin = time.perf_counter(), self._mark()
        yield
        if begin is None:
            self._own_s += time.perf_counter() - begun
        else:
            self._events.append((begin, self._mark()))  # type: ignore[arg-type]

    def computed(self) -> None:
        """Forward and backward of the last micro-batch are behind."""
        self.compute_s = time.perf_counter() - self._started
        self._end = self._mark()

    @property
    def own_s(self) -> float:
        """Seconds in which this rank waited for no other: rows, what is made of them, forwards.

        Backward passes are left out: gradients are reduced while they run. Under ZeRO-3 forward
        passes gather weights, so there a slow rank shows in the others' seconds as well. On CUDA
        it waits for the device while the step runs, and for nothing behind `finish`.
        """
        return self._own_s + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000

    def elapsed_s(self) -> float:
        """Seconds since the step began, on the clock of the host."""
        return time.perf_counter() - self._started

    def finish(self) -> Self:
        """The step is done, on the device too."""
        self.step_s = time.perf_counter() - self._started
        if self._begin is not None and self._end is not None:
            self.compute_s = self._begin.elapsed_time(self._end) / 1000
        else:
            self.compute_s -= self.data_s
        return self

    def _mark(self) -> torch.cuda.Event | None:
        if not self._is_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def rank_figures(own_s_W: Tensor) -> dict[str, float]:
    """Which rank the others wait for: the slowest one, and its and the median rank's seconds.

    Args:
        own_s_W: seconds of every rank's own work (`StepTimes.own_s`), [W]; the median is the lower
            one, so of two ranks it is the faster.
    """
    return {
        "time/slowest_rank": int(own_s_W.argmax()),
        "time/slowest_rank_s": own_s_W.max().item(),
        "time/median_rank_s": own_s_W.median().item(),
    }


@dataclass(frozen=True, kw_only=True)
class StepCounter:
    """Counts what a step holds over all ranks, and makes its figures.

    Attributes:
        config: the resolved training configuration.
        builder: of the micro-batches.
        ranks: this rank.
        flops: of the model.
        peak: FLOP/s of the device; None: not known, and no MFU.
    """

    config: TrainConfig
    builder: StepBuilder
    ranks: Ranks
    flops: StepFlops
    peak: float | None

    @classmethod
    def of(cls, config: TrainConfig, builder: StepBuilder, ranks: Ranks, model: Any) -> Self:
        """The counter of a run."""
        return cls(
            config=config,
            builder=builder,
            ranks=ranks,
            flops=StepFlops.of(model),
            peak=peak_flops(ranks.device),
        )

    def mine(self, micros: Sequence[tuple[Any, ...]]) -> Tensor:
        """Counts of this rank's part of a step, float64; they add up over ranks. See `named`."""
        places = sum(layout.doc_RT.numel() for layout, *_ in micros)
        pairs = 0
        if self.peak is not None:
            pairs = sum(int(attended_pairs(layout)) for layout, *_ in micros)
        more = torch.tensor([places, pairs], dtype=torch.float64)
        return torch.cat([self.builder.counts(micros), more])

    def named(self, totals: Tensor) -> dict[str, float]:
        """Counts of a step: `batches.COUNTS`, token places, attended pairs."""
        return dict(zip((*COUNTS, "places", "pairs"), totals.tolist(), strict=True))

    def figures(self, counts: dict[str, float], times: StepTimes) -> dict[str, float]:
        """What is reported of a step besides loss, gradient norm and learning rate."""
        data = self.config.data
        seconds = times.step_s
        room = counts["places"]
        if data.packing:
            room = self.config.batch.rows * data.tokens_per_row
        figures = {
            "tokens_per_s": counts["tokens"] / seconds,
            "target_tokens_per_s": counts["targets"] / seconds,
            "masked_fraction": counts["masked"] / counts["targets"],
            "eos_fraction": counts["eos_targets"] / counts["targets"],
            "utilisation": counts["tokens"] / room,
            "data_s": times.data_s,
            "compute_s": times.compute_s,
            "optimizer_s": seconds - times.data_s - times.compute_s,
            "step_s": seconds,
        }
        if self.peak is not None:
            work = self.flops.step(counts["tokens"], counts["pairs"], counts["masked"])
            figures["mfu"] = work / (seconds * self.peak * self.ranks.world)
        return figures
