"""Benchmark suites."""

from typing import ClassVar, Literal

from pydantic import (
    Field,
)

from a2d_ray.config.base import Conditions, Section


class BenchmarkConfig(Section):
    """Measure a suite against its baseline; prints one JSON line per case."""

    effective_if: ClassVar[Conditions] = {
        "budget_s": {"suite": ("learning", "answers", "quality")},
        "root": {"suite": ("quality", "speculation")},
    }

    suite: Literal[
        "training",
        "learning",
        "answers",
        "sampling",
        "quality",
        "speculation",
        "data",
        "serving",
        "evaluation",
    ] = Field(description="What is measured.")
    quick: bool = Field(False, description="A minute's version, with fewer repeats and sizes.")
    cases: list[str] | None = Field(None, description="Only these cases; null: all of the suite.")
    threads: int = Field(1, ge=1, description="Torch threads.")
    budget_s: float | None = Field(
        None,
        gt=0,
        description="CPU seconds of each training run; null: 300 (quick: 20) for learning and "
        "answers, as many as the quickstart took for quality.",
    )
    root: str = Field("runs/quickstart", description="A finished quickstart.")
    seed: int = Field(0, ge=0, description="Seed of the weights and inputs.")
