"""What requests are made of: strict types, and the options that only diffusion has."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from a2d_ray.config import OPTION_NAMES, Rule, SamplingSection, check_effect, with_rule
from a2d_ray.config.keys import kinds_of
from a2d_ray.http.bodies import Plain

StreamMode = Literal["prefix", "block", "denoise"]


def only(*neutral: Any) -> Any:
    """A field that is accepted only if left out, null, or in values that ask for nothing."""
    return Field(None, json_schema_extra={"enum": [None, *neutral]})


def ignored() -> Any:
    """A field that others send and that cannot change the answer: accepted with any value."""
    return Field(None, exclude=True, description="Accepted, and without effect here.")


class Strict(Plain):
    """`Plain`, and fields that take neutral values `only`."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, float) and value.is_integer() and _is_whole(field.annotation):
            return int(value)  # 1.0: some languages have no other numbers
        extra = field.json_schema_extra
        if not isinstance(extra, dict):
            return value
        neutral = cast(list[Any], extra["enum"])
        if not any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral):
            allowed = " or ".join(map(json.dumps, neutral[1:])) or "null"
            raise ValueError(f"{value!r} is not supported: leave it out or send {allowed}")
        return value


def _is_whole(annotation: Any) -> bool:
    """Whether a field takes integers, and no other numbers."""
    kinds = set(kinds_of(annotation))
    return int in kinds and float not in kinds


def optional(section: type[BaseModel], names: Iterable[str]) -> dict[str, Any]:
    """Fields of a section as `create_model` takes them, each of which may be left out."""
    fields: dict[str, Any] = {}
    for name in names:
        field = section.model_fields[name]
        kind: Any = field.annotation
        if field.metadata:
            kind = Annotated[(kind, *field.metadata)]
        fields[name] = (kind | None, Field(None, description=field.description))
    return fields


_DecodingOptions: Any = create_model(
    "_DecodingOptions",
    __base__=Strict,
    **optional(SamplingSection, ("rule", *OPTION_NAMES, "remask_threshold", "block_size")),
)


class DiffusionOptions(_DecodingOptions):
    """How the answer is denoised; what is left out is the served model's default."""

    stream_mode: StreamMode | None = Field(
        None,
        description="What a stream brings: tokens as soon as they are final (prefix, the default), "
        "whole blocks, or besides the tokens the canvas of every denoise step.",
    )

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.chosen_rule is not None:
            check_effect(self.chosen_rule, self.asked())
        return self

    @property
    def chosen_rule(self) -> Rule | None:
        """The rule asked for, by name or by options that it has."""
        return self.asked().get("rule")

    def asked(self) -> dict[str, Any]:
        """Options of the decoder that are given."""
        return with_rule(self.model_dump(exclude={"stream_mode"}, exclude_none=True))


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: in every chunk what it has cost so far (vLLM's)."
    )
    include_obfuscation: Any = ignored()
