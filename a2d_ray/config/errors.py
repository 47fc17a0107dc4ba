"""The errors of options: which one, what it was, what is wrong, and what to do."""

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

LONGEST_VALUE = 80  # characters of a value that a text shows


def shown(value: Any) -> str:
    """A value as a user writes it: true, null, [1, 2]."""
    value = list(value) if isinstance(value, tuple) else value
    text = "null" if value is None else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


class OptionError(ValueError):
    """An option that cannot be used as given. Its text is made from its parts.

    It pickles, and pydantic keeps it in a problem's ``ctx["error"]``.

    Attributes:
        field: dotted key of the option, below the section or function that refuses it.
        value: what was given.
        problem: what is wrong with it; follows ``field=value``.
        fix: what to do.
    """

    def __init__(self, field: str, value: Any, problem: str, fix: str) -> None:
        super().__init__(field, value, problem, fix)
        self.field = field
        self.value = value
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.field}={shown(self.value)} {self.problem}: {self.fix}"

    def under(self, place: str) -> "OptionError":
        """The same error of a section that lies at the dotted key `place`."""
        return OptionError(f"{place}.{self.field}", self.value, self.problem, self.fix)


class NoEffectError(OptionError):
    """An option that changes nothing beside the value of another one.

    Attributes:
        cause: dotted key of the other one.
    """

    def __init__(self, field: str, value: Any, cause: str, cause_value: Any, needed: str) -> None:
        """`needed`: what the other one would have to be, as text; empty: anything else."""
        wanted = f"{cause}={needed}" if needed else cause
        problem = f"has no effect with {cause}={shown(cause_value)}"
        super().__init__(field, value, problem, f"set {wanted}, or leave {field} out")
        self.args = (field, value, cause, cause_value, needed)
        self.cause = cause

    def under(self, place: str) -> "NoEffectError":
        """See `OptionError.under`."""
        field, value, cause, cause_value, needed = self.args
        return NoEffectError(f"{place}.{field}", value, f"{place}.{cause}", cause_value, needed)


def first_problem(model: type[BaseModel], error: ValidationError) -> OptionError:
    """The first problem of values that are no `model`."""
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    field = ".".join(map(str, problem["loc"]))
    if isinstance(cause, OptionError):
        return cause.under(field) if field else cause
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, model.model_fields, n=1)
        fix = f"did you mean {near[0]}?" if near else "see --help for the keys"
        return OptionError(field, problem["input"], "is unknown", fix)
    fix = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return OptionError(field, problem["input"], "cannot be used", fix)
