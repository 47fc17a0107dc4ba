"""The errors of options: which one, what it was, what is wrong, and what to do."""

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from a2d_ray.config.keys import find_field, near_key

LONGEST_VALUE = 80  # characters of a value that a text shows


def shown(value: Any) -> str:
    """A value as a user writes it: true, null, [1, 2]."""
    value = list(value) if isinstance(value, tuple) else value
    text = "null" if value is None else str(value)
    text = text.lower() if isinstance(value, bool) else text
    if len(text) <= LONGEST_VALUE:
        return text
    kept = LONGEST_VALUE // 2 - 2  # of either end: a long path ends in what tells it from others
    return f"{text[:kept]}...{text[-kept:]}"


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

    def renamed(self, field: str) -> "OptionError":
        """The same error of an option that is called `field` here."""
        return OptionError(field, self.value, self.problem, self.fix)


class MissingOptionError(OptionError):
    """An option that has no default and was not given."""

    def __init__(self, field: str) -> None:
        fix = f"set it in the YAML file or as {field}=VALUE"
        super().__init__(field, None, "is missing", fix)
        self.args = (field,)

    def __str__(self) -> str:
        return f"{self.field} {self.problem}: {self.fix}"

    def under(self, place: str) -> "MissingOptionError":
        """See `OptionError.under`."""
        return MissingOptionError(f"{place}.{self.field}")


class TooLongError(OptionError):
    """A prompt that leaves no room for its answer."""


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


class ConfigError(ValueError):
    """A configuration that cannot run: one line for each of its problems.

    Attributes:
        problems: `OptionError` where an option is at fault, else texts.
    """

    def __init__(self, *problems: OptionError | str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(dict.fromkeys(map(str, self.problems)))


def explain(model: type[BaseModel], error: ValidationError) -> list[OptionError]:
    """The problems of values that are no `model`, in order."""
    return [_option_error(model, problem) for problem in error.errors()]


def first_problem(model: type[BaseModel], error: ValidationError) -> OptionError:
    """The first problem of values that are no `model`."""
    return explain(model, error)[0]


_UNION_BRANCHES = ("bool", "int", "float", "str")


def _is_of_key(part: str | int) -> bool:
    """Whether a part of pydantic's location belongs to a key, and is no branch of a union."""
    return isinstance(part, int) or (part.isidentifier() and part not in _UNION_BRANCHES)


def _option_error(model: type[BaseModel], problem: Any) -> OptionError:
    is_unknown = problem["type"] == "extra_forbidden"
    *_, last = problem["loc"] or ("",)
    path = [str(part) for part in problem["loc"] if _is_of_key(part)]
    if is_unknown and not _is_of_key(last):  # as it was written, such as max-length
        path.append(str(last))
    key = ".".join(path)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, OptionError):
        return cause.under(key) if key else cause
    if problem["type"] == "missing":
        return MissingOptionError(key)
    if is_unknown:
        return unknown_key(model, key, problem["input"])
    field = find_field(model, path)
    about = field.description if field is not None else None
    wrong = problem["msg"].removeprefix("Value error, ").split(", unable to")[0]
    wrong = re.sub(r"^[A-Z]\w* should", "should", wrong)
    return OptionError(key, problem["input"], wrong, (about or "see --help").rstrip("."))


def unknown_key(model: type[BaseModel], key: str, value: Any) -> OptionError:
    """The error of a key that there is not."""
    near = near_key(model, key)
    fix = f"did you mean {near}?" if near else "see --help for the keys"
    return OptionError(key, value, "is unknown", fix)
