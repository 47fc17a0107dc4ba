"""What requests are made of: strict types, and the options that only diffusion has."""

import json
from typing import Any, Literal, Self, cast

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from a2d_ray.config import RULES_OF, Remasking, Rule
from a2d_ray.http.bodies import Plain

StreamMode = Literal["prefix", "block", "denoise"]


def only(*neutral: Any) -> Any:
    """A field that is accepted only if left out, null, or in values that ask for nothing."""
    return Field(None, json_schema_extra={"enum": [None, *neutral]})


class Strict(Plain):
    """`Plain`, and fields that take neutral values `only`."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        extra = cls.model_fields[info.field_name or ""].json_schema_extra
        if not isinstance(extra, dict):
            return value
        neutral = cast(list[Any], extra["enum"])
        if not any(type(value) is type(n) and value == n for n in neutral):
            allowed = " or ".join(map(json.dumps, neutral[1:])) or "null"
            raise ValueError(f"{value!r} is not supported: leave it out or send {allowed}")
        return value


class DiffusionOptions(Strict):
    """How the answer is denoised; what is left out is the served model's default."""

    rule: Rule | None = Field(None, description="Decoding rule.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Confidence bound (rules threshold, prefix, klass)."
    )
    steps: int | None = Field(None, ge=1, description="Denoise steps in total (rule steps).")
    remasking: Remasking | None = Field(None, description="What rule steps commits first.")
    stochastic_transfer: bool | None = Field(None, description="Rule steps: draw the counts.")
    factor: float | None = Field(None, gt=0, description="Rule factor.")
    delta: float | None = Field(None, ge=0, lt=1, description="Rule frechet.")
    gamma: float | None = Field(None, ge=0, description="Nats (rule entropy_bound).")
    entropy_threshold: float | None = Field(None, ge=0, description="Nats (rule entropy).")
    entropy_slope: float | None = Field(None, ge=0, description="Nats per position (entropy).")
    kl_threshold: float | None = Field(None, gt=0, description="Nats of KL (rule klass).")
    remask_threshold: float | None = Field(
        None, ge=0, lt=1, description="Tokens that fall below become masks again; 0: never."
    )
    block_size: int | None = Field(None, ge=1, description="Tokens per block.")
    stream_mode: StreamMode | None = Field(
        None,
        description="What a stream brings: tokens as soon as they are final (prefix, the default), "
        "whole blocks, or besides the tokens the canvas of every denoise step.",
    )

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        rule = self.chosen_rule
        for option, rules in RULES_OF.items():
            if getattr(self, option) is not None and rule not in rules:
                raise ValueError(f"{option} needs rule {' or '.join(rules)}, not {rule}")
        return self

    @property
    def chosen_rule(self) -> Rule | None:
        """The rule asked for, by name or by an option that only it has."""
        if self.rule is not None:
            return self.rule
        given = (
            rules[0] for option, rules in RULES_OF.items() if getattr(self, option) is not None
        )
        return next(given, None)

    def asked(self) -> dict[str, Any]:
        """Options of the decoder that are given."""
        values = self.model_dump(exclude={"rule", "stream_mode"}, exclude_none=True)
        return values if self.chosen_rule is None else values | {"rule": self.chosen_rule}


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Any = only(False)
