"""Benchmark suites."""

from typing import Literal

from pydantic import (
    Field,
)

from a2d_ray.config.base import Section


class BenchmarkConfig(Section):
    """Measure a suite against its baseline; prints one JSON line per case."""

    suite: Literal["training", "sampling", "data", "serving", "evaluation"] = Field(
        description="What is measured."
    )
    quick: bool = Field(False, description="A minute's version, with fewer repeats and sizes.")
    cases: list[str] | None = Field(None, description="Only these cases; null: all of the suite.")
    threads: int = Field(1, ge=1, description="Torch threads.")
    seed: int = Field(0, ge=0, description="Seed of the weights and inputs.")
