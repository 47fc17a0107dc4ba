"""The error of an option: which one, what it was, and what to do."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


class OptionError(ValueError):
    """An option that cannot be used as given. Its text is made from its parts.

    It pickles, and pydantic keeps it in a problem's ``ctx["error"]``.

    Attributes:
        field: dotted key of the option, as the user writes it.
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
        return f"{self.field}={self.value} {self.problem}: {self.fix}"

    def under(self, key: str) -> "OptionError":
        """The same, of an option that stands under a key."""
        return OptionError(f"{key}.{self.field}", self.value, self.problem, self.fix)


def unknown_option(name: str, value: Any, known: Iterable[str], kind: str) -> OptionError:
    """The error of a name that nobody knows.

    Args:
        name: what was given.
        value: its value.
        known: names that there are.
        kind: what it is not, such as ``option``.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
    return OptionError(name, value, f"is no {kind}", fix)


def first_problem(model: type[BaseModel], error: ValidationError) -> OptionError:
    """The first problem of values that are no `model`."""
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    field = ".".join(map(str, problem["loc"]))
    if isinstance(cause, OptionError):
        return cause.under(field) if field else cause
    if problem["type"] == "extra_forbidden":
        return unknown_option(field, problem["input"], model.model_fields, "option")
    fix = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return OptionError(field, problem["input"], "cannot be used", fix)
