"""Requests, in OpenAI's names plus one extra object, ``diffusion``. Imports nothing heavy.

A field that OpenAI has and we do not is listed with the values that ask for nothing (`only`); any
other value is an error that names the field. So is a field that nobody knows.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from a2d_ray.config import SamplingSection
from a2d_ray.generation.params import Remasking, Rule, SamplingParams
from a2d_ray.serving.errors import RequestError

StreamMode = Literal["prefix", "block", "denoise"]

Prompt = str | list[int] | list[dict[str, str]]
"""What `LanguageModel.encode` takes: plain text, token ids, or chat messages."""


def only(*neutral: Any) -> Any:
    """A field that is accepted only if left out, null, or in values that ask for nothing."""
    return Field(None, json_schema_extra={"enum": [None, *neutral]})


class Strict(BaseModel):
    """Types as they are, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

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
    threshold: float | None = Field(None, ge=0, le=1, description="Confidence bound.")
    steps: int | None = Field(None, ge=1, description="Denoise steps in total (rule steps).")
    block_size: int | None = Field(None, ge=1, description="Tokens per block.")
    remasking: Remasking | None = Field(None, description="What rule steps commits first.")
    stream_mode: StreamMode | None = Field(
        None,
        description="What a stream brings: tokens as soon as they are final (prefix, the default), "
        "whole blocks, or besides the tokens the canvas of every denoise step.",
    )

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        rule = self.chosen_rule
        if self.steps is not None and rule == "threshold":
            raise ValueError("steps needs rule 'steps', and threshold needs rule 'threshold'")
        if self.threshold is not None and rule == "steps":
            raise ValueError("threshold needs rule 'threshold', and steps needs rule 'steps'")
        return self

    @property
    def chosen_rule(self) -> Rule | None:
        """The rule asked for, by name or by an option that only it has."""
        if self.rule is None and self.threshold is not None:
            return "threshold"
        return "steps" if self.rule is None and self.steps is not None else self.rule


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Any = only(False)


class GenerationRequest(Strict):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusion: DiffusionOptions | None = None
    # Names of the caller, which change nothing.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Of OpenAI's and vLLM's API, not supported.
    n: Any = only(1)
    top_p: Any = only(1, 1.0)
    top_k: Any = only(-1, 0)
    min_p: Any = only(0, 0.0)
    presence_penalty: Any = only(0, 0.0)
    frequency_penalty: Any = only(0, 0.0)
    repetition_penalty: Any = only(1, 1.0)
    logit_bias: Any = only({})
    logprobs: Any = only(False)
    response_format: Any = only({"type": "text"})
    service_tier: Any = only("auto", "default")

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or "" in texts:
            raise ValueError("must be one to four texts that are not empty")
        return stop

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream=true", param="stream_options")
        return self

    def stream_mode(self) -> StreamMode:
        """What the stream brings; a whole answer needs no more than its blocks."""
        asked = self.diffusion.stream_mode if self.diffusion else None
        return (asked or "prefix") if self.stream else "block"

    def is_usage_streamed(self) -> bool:
        """Whether a last chunk shall carry the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def prompts(self) -> list[Prompt]:
        """One prompt per choice."""
        raise NotImplementedError(f"{type(self).__name__}.prompts")

    def max_new_tokens(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens

    def echoed(self) -> bool:
        """Whether the prompt is part of the answer."""
        return False

    def params(self, defaults: SamplingSection, seed: int) -> SamplingParams:
        """Options of the decoder: the request's, then the served model's `defaults`.

        Args:
            seed: used when the request names none.
        """
        diffusion = self.diffusion or DiffusionOptions()
        asked = {
            "max_new_tokens": self.max_new_tokens(),
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": self.ignore_eos,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "rule": diffusion.chosen_rule,
            **diffusion.model_dump(include={"threshold", "steps", "block_size", "remasking"}),
        }
        values = defaults.model_dump() | {"seed": seed}
        if asked["rule"] not in (None, defaults.rule):
            values.pop("steps")  # belongs to the default's rule
        values |= {key: value for key, value in asked.items() if value is not None}
        return SamplingParams(**values)


class TextPart(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Any = only()
    tool_calls: Any = only([])
    function_call: Any = only()
    refusal: Any = only()
    audio: Any = only()
    annotations: Any = only([])

    def to_chat(self) -> dict[str, str]:
        """The message as chat templates take it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatCompletionRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    top_logprobs: Any = only(0)
    tools: Any = only([])
    tool_choice: Any = only("none", "auto")
    parallel_tool_calls: Any = only(True, False)
    functions: Any = only([])
    function_call: Any = only("none", "auto")
    modalities: Any = only(["text"])
    audio: Any = only()
    prediction: Any = only()
    reasoning_effort: Any = only("none")
    verbosity: Any = only("medium")
    web_search_options: Any = only()
    store: Any = only(False)

    @model_validator(mode="after")
    def _check_max_tokens(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise RequestError(
                "max_tokens and max_completion_tokens mean the same: send one of them",
                param="max_completion_tokens",
            )
        return self

    def prompts(self) -> list[Prompt]:
        """The chat, as one prompt."""
        return [[message.to_chat() for message in self.messages]]

    def max_new_tokens(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``; `prompt` may hold several prompts: one choice each."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None
    suffix: Any = only()
    best_of: Any = only(1)
    logprobs: Any = only()

    def prompts(self) -> list[Prompt]:
        """Every prompt, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt or isinstance(self.prompt[0], int):
            return [_as_ids(self.prompt)]
        return [p if isinstance(p, str) else _as_ids(p) for p in self.prompt]

    def echoed(self) -> bool:
        """Whether the prompt is part of the answer."""
        return bool(self.echo)


def _as_ids(ids: Iterable[Any]) -> list[int]:
    return list(ids)
