"""What every suite shares: interleaved timing by CPU time, and one JSON line per case."""

import gc
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from a2d_ray.config import BenchmarkConfig

# Suite -> module with `run(config) -> Iterator[Case]`.
SUITES: dict[str, str] = {
    "data": "benchmarks.data",
    "training": "benchmarks.training",
    "learning": "benchmarks.learning",
    "answers": "benchmarks.answers",
    "sampling": "benchmarks.sampling",
    "quality": "benchmarks.quality",
    "speculation": "benchmarks.speculation",
    "serving": "benchmarks.serving",
    "evaluation": "benchmarks.evaluation",
}
PACKAGES = ("torch", "transformers", "ray", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over the repeats of one contender.

    Attributes:
        cpu_s: process CPU seconds, over all threads.
        wall_s: seconds on the clock.
    """

    cpu_s: float
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured comparison.

    Attributes:
        name: of the case.
        ours, baseline: what was measured, in `unit`.
        unit: of both; says whether less or more is better (`is_cost`).
        is_cost: whether less is better.
        baseline_forwards: model forwards of the baseline; None where it has none.
        baseline_floor: the same forwards done bare, in `unit`; an honest baseline is within 1.15x.
        facts: whatever else the reader needs (peak memory, FLOPs, wall seconds, ...).
    """

    name: str
    ours: float
    baseline: float
    unit: str
    is_cost: bool = True
    baseline_forwards: int | None = None
    baseline_floor: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times ours is better; above 1 it is."""
        return self.baseline / self.ours if self.is_cost else self.ours / self.baseline


def measure(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1
) -> dict[str, Timing]:
    """Medians of CPU and wall seconds of each contender.

    The contenders take turns (A B A B ...), so that a machine that slows down slows both.

    Args:
        contenders: what is timed, by name.
        repeats: timed runs of each.
        warmup: runs of each that are not timed.
    """
    for _ in range(warmup):
        for run in contenders.values():
            run()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            gc.collect()
            cpu = time.process_time()
            wall = time.perf_counter()
            run()
            samples[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: Timing(
            cpu_s=statistics.median(cpu for cpu, _ in runs),
            wall_s=statistics.median(wall for _, wall in runs),
        )
        for name, runs in samples.items()
    }


def run_suite(config: BenchmarkConfig) -> Iterator[str]:
    """A JSON line per case of the suite as it is measured, and one that sums up."""
    suite = importlib.import_module(SUITES[config.suite])
    ratios = {}
    for case in suite.run(config):
        ratios[case.name] = round(case.ratio, 3)
        yield json.dumps(_line(config, case))
    yield json.dumps({"suite": config.suite, "summary": ratios, "quick": config.quick})


def _line(config: BenchmarkConfig, case: Case) -> dict[str, Any]:
    return {
        "suite": config.suite,
        "case": case.name,
        "ours": round(case.ours, 6),
        "baseline": round(case.baseline, 6),
        "unit": case.unit,
        "ratio": round(case.ratio, 3),
        "baseline_forwards": case.baseline_forwards,
        "baseline_floor": None if case.baseline_floor is None else round(case.baseline_floor, 6),
        "threads": config.threads,
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in PACKAGES},
        **case.facts,
    }
