"""The error of an option: which one, what it was, and what to do."""

from typing import Any


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
