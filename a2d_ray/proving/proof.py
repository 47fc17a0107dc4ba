"""Runs the laws on a miniature of a configuration, and says what came out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from a2d_ray.models.architectures import Architecture
from a2d_ray.models.miniature import Miniature, make_miniature
from a2d_ray.proving.laws import LAWS, Law


@dataclass(frozen=True, kw_only=True)
class LawResult:
    """What came of one law.

    Attributes:
        law: which.
        difference: the largest, as a share of the largest magnitude; None: the law ended by an
            error.
        error: that error.
        seconds: that it took.
    """

    law: Law
    difference: float | None
    error: str | None
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the law holds but for rounding."""
        return self.difference is not None and self.difference <= self.law.allowed


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What came of all laws.

    Attributes:
        architecture: the family.
        results: in the order of the laws.
    """

    architecture: Architecture
    results: tuple[LawResult, ...]

    @property
    def failure(self) -> LawResult | None:
        """The first law that does not hold, or None: all hold."""
        return next((result for result in self.results if not result.holds), None)

    def check(self, name: str) -> None:
        """Refuses a model whose family does not hold a law.

        Raises:
            ValueError: names the law and the largest difference.
        """
        failed = self.failure
        if failed is None:
            return
        found = (
            f"it ended with {failed.error}"
            if failed.difference is None
            else f"the largest difference is {failed.difference:.2g} of the largest magnitude, "
            f"{failed.law.allowed:.2g} is allowed"
        )
        raise ValueError(
            f"{name} cannot be converted: a small random {self.architecture.ar_model_type} model "
            f"of its configuration does not hold the law {failed.law.name!r} ({failed.law.says}): "
            f"{found}"
        )


def prove(architecture: Architecture, config: Any, *, laws: Sequence[Law] = LAWS) -> Proof:
    """Holds a miniature of an AR configuration to the laws.

    Args:
        architecture: its family.
        config: transformers' AR configuration.
        laws: which.
    """
    made: list[Miniature] = []

    def build() -> float:
        made.append(make_miniature(architecture, config))
        return 0.0

    building = Law(
        name="miniature",
        says="a small model of its configuration can be built",
        difference=lambda _: build(),
        allowed=0.0,
    )
    first = _result(building, lambda: build())
    if not made:
        return Proof(architecture=architecture, results=(first,))
    results = [_result(law, lambda law=law: law.difference(made[0])) for law in laws]  # type: ignore[misc]
    return Proof(architecture=architecture, results=tuple(results))


def _result(law: Law, measure: Callable[[], float]) -> LawResult:
    started = time.perf_counter()
    difference = error = None
    try:
        difference = measure()
    except Exception as caught:  # whatever a family's code raises, the law does not hold
        error = f"{type(caught).__name__}: {' '.join(str(caught).split())[:200]}"
    seconds = time.perf_counter() - started
    return LawResult(law=law, difference=difference, error=error, seconds=seconds)


def format_proof(proof: Proof) -> str:
    """A line per law: whether it holds, the largest difference, seconds."""
    lines = [f"{'law':<15}{'holds':<7}{'difference':>11}{'allowed':>9}{'seconds':>9}"]
    for result in proof.results:
        found = "-" if result.difference is None else f"{result.difference:.1e}"
        holds = "yes" if result.holds else "no"
        lines.append(
            f"{result.law.name:<15}{holds:<7}{found:>11}{result.law.allowed:>9.0e}"
            f"{result.seconds:>9.2f}"
        )
        if result.error is not None:
            lines.append(f"  {result.error}")
    return "\n".join(lines)
