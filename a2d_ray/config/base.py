"""What every part shares: a frozen section, units in values, names of choices."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

Objective = Literal["mdlm", "bd3lm"]

BlockGrid = Literal["segment", "absolute", "prompt_end"]


def _seconds(value: Any) -> Any:
    """Seconds of a duration such as 30m; numbers are seconds already."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value) if isinstance(value, str) else None
    if match is None:
        return value
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def one_or_two(value: Any) -> Any:
    """The command line makes a list of a single number."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""Seconds; written as a number or as 90s, 30m, 2h, 1d."""


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def require(section: Section, name: str, reason: str, values: dict[str, Any]) -> None:
    """Refuses values other than `values` (a tuple: any of them), naming all that are wrong."""
    wrong = []
    for key, wanted in values.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if getattr(section, key) not in allowed:
            wrong.append(f"{name}.{key}={str(allowed[0]).lower()}")
    if wrong:
        raise ValueError(f"{reason} needs {' '.join(wrong)}")
