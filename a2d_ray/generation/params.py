"""What one request asks of the decoder. Imports nothing heavy."""

from typing import Any

from pydantic import ValidationError

from a2d_ray.config import Remasking, Rule, SamplingSection

__all__ = ["Remasking", "Rule", "SamplingParams"]


class SamplingParams(SamplingSection):
    """Options of one request: the fields of `a2d_ray.config.SamplingSection`, by keyword.

    Raises:
        ValueError: an unknown option or a value outside its range, naming the field.
    """

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ValueError("; ".join(map(_explain, error.errors()))) from None


def _explain(problem: Any) -> str:
    """One line: field, what it must be, and the value."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    name = ".".join(map(str, problem["loc"]))
    return f"{name}: {message}, got {problem['input']!r:.100}"
