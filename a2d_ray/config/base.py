"""What every part shares: a frozen section, units in values, names of choices."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from a2d_ray.config.errors import NoEffectError, OptionError, shown
from a2d_ray.config.keys import find_field, kinds_of, value_at

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


GpuShare = Annotated[float, Field(ge=0)] | Literal["auto"]

GPUS_EACH = "GPUs of each; auto: one, or a fair share of those that there are; 0: CPUs compute."


_EXPONENT = re.compile(r"\d+(\.\d+)?[eE]\+?\d+")

GIVEN = object()
"""As what another option has to be: anything but null, 0 and empty."""

Conditions = Mapping[str, Mapping[str, Any]]
"""Option -> other option -> what that one has to be (a tuple: any of them), or `GIVEN`."""


class Section(BaseModel):
    """A frozen group of options; unknown keys and options without effect are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    effective_if: ClassVar[Conditions] = {}
    """What options need to have an effect, by dotted keys below the section. An option that has
    none is refused, unless it has its default: a complete dump can be read again."""

    @field_validator("*", mode="before")
    @classmethod
    def _read_exponent(cls, value: Any, info: ValidationInfo) -> Any:
        """A whole number such as 1e4, which YAML and command lines leave a text."""
        if not isinstance(value, str) or not _EXPONENT.fullmatch(value):
            return value
        kinds = set(kinds_of(cls.model_fields[info.field_name or ""].annotation))
        return float(value) if int in kinds and str not in kinds else value

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        for key, needed in self.effective_if.items():
            value = value_at(self, key)
            field = find_field(type(self), key.split("."))
            assert field is not None, key
            if value is None or value == field.get_default(call_default_factory=True):
                continue
            for other, wanted in needed.items():
                found = value_at(self, other)
                if not (found if wanted is GIVEN else found in _each(wanted)):
                    raise NoEffectError(key, value, other, found, condition_text(wanted))
        return self


def _each(wanted: Any) -> tuple[Any, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


def condition_text(wanted: Any) -> str:
    """What an option has to be, as a user writes it; empty: anything that is `GIVEN`."""
    return "" if wanted is GIVEN else " or ".join(map(shown, _each(wanted)))


def require(option: str, value: Any, section: Section, place: str, needed: dict[str, Any]) -> None:
    """Refuses an option beside others than it needs.

    Args:
        option: its dotted key, below the section that refuses it.
        value: of the option.
        section: that holds the others.
        place: dotted key of that section.
        needed: what the others have to be (a tuple: any of them).

    Raises:
        OptionError: names all that are wrong.
    """
    wrong = [
        f"{place}.{key}={shown(_each(wanted)[0])}"
        for key, wanted in needed.items()
        if getattr(section, key) not in _each(wanted)
    ]
    if wrong:
        raise OptionError(option, value, f"needs {' '.join(wrong)}", "set that, or leave it out")
