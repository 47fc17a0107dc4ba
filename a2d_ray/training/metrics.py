"""The figures of an optimizer step."""

import time
from dataclasses import dataclass
from typing import Any, Self

import torch

from a2d_ray.config import TrainConfig
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise
from a2d_ray.training.batches import COUNTS, StepBuilder
from a2d_ray.training.flops import StepFlops, attended_pairs, peak_flops
from a2d_ray.training.ranks import Ranks


class StepTimes:
    """Seconds of a step's parts: data, forward and backward, optimizer.

    Args:
        started: `time.perf_counter` when the step before ended; data is ready now.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self.data_s = time.perf_counter() - started
        self.compute_s = self.step_s = 0.0

    def computed(self) -> None:
        """Forward and backward of the last micro-batch are done."""
        self.compute_s = time.perf_counter() - self._started - self.data_s

    def finish(self) -> Self:
        """The step is done."""
        self.step_s = time.perf_counter() - self._started
        return self


@dataclass(frozen=True, kw_only=True)
class StepCounter:
    """Counts what a step holds over all ranks, and makes its figures.

    Attributes:
        config: of the run.
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

    def count(self, micros: list[tuple[Layout, Noise]]) -> dict[str, float]:
        """Counts of a step over all ranks: `batches.COUNTS`, token places, attended pairs."""
        places = sum(layout.doc_RT.numel() for layout, _ in micros)
        pairs = 0
        if self.peak is not None:
            pairs = sum(int(attended_pairs(layout)) for layout, _ in micros)
        more = torch.tensor([places, pairs], dtype=torch.float64)
        totals = self.ranks.sum(torch.cat([self.builder.counts(micros), more]))
        return dict(zip((*COUNTS, "places", "pairs"), totals.tolist(), strict=True))

    def figures(self, counts: dict[str, float], times: StepTimes) -> dict[str, float]:
        """What is reported of a step besides loss, gradient norm and learning rate."""
        data, seconds = self.config.data, times.step_s
        room = counts["places"]
        if data.packing:
            room = self.config.batch.size * data.tokens_per_row
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
