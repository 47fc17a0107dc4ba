"""Decoding options, and the commands that sample."""

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from a2d_ray.config.base import Conditions, Section
from a2d_ray.config.errors import OptionError, first_problem
from a2d_ray.config.models import LoadSection
from a2d_ray.config.rules import AR_RULES, RuleOptions

NOT_FROM_THE_LEFT = ("block_size", "remask_threshold", "cfg_scale", "begin_suppress_tokens")
"""Options without a meaning where one token follows the other."""


class SamplingSection(RuleOptions):
    """How answers are decoded; the one place of these defaults (`SamplingParams` has them too).

    Its bounds keep every logit finite: a logit that is not would fail its request.
    """

    max_new_tokens: int = Field(128, ge=1, description="Longest answer in tokens.")
    min_tokens: int = Field(0, ge=0, description="No end-of-turn or stop id before N tokens.")
    block_size: int | None = Field(
        None, ge=1, description="Tokens per block; default: the checkpoint's own."
    )
    n: int = Field(1, ge=1, le=128, description="Answers per prompt, each with draws of its own.")
    remask_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Mask a committed token again (at most 3 times, behind the first mask) when "
        "its probability falls below this; 0: never.",
    )
    temperature: float = Field(0.0, ge=0, le=100, description="0: greedy; else from 0.01 on.")
    top_k: int = Field(0, ge=0, description="Draw from the k most likely tokens; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the most likely mass.")
    min_p: float = Field(0.0, ge=0, le=1, description="Least probability relative to the best.")
    seed: int = Field(0, description="With choice, position and step it fixes every draw.")
    cfg_scale: float = Field(0.0, ge=0, le=100, description="Classifier-free guidance; 0: off.")
    cfg_keep_tokens: tuple[int, ...] = Field(
        (), description="Prompt ids that the unconditional run sees unmasked."
    )
    suppress_tokens: tuple[int, ...] = Field((), description="Ids that are never chosen.")
    begin_suppress_tokens: tuple[int, ...] = Field(
        (), description="Ids that count as unsure when chosen, so they are committed late."
    )
    logit_bias: dict[int, float] = Field(
        default_factory=dict, description="Added to the logits of these ids, in [-100, 100]."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from the logits of ids in the answer."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="The same, times how often they occur there."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="Divides logits of ids in prompt or answer."
    )
    stop: tuple[str, ...] = Field((), description="Texts that end the answer and are cut off.")
    stop_token_ids: tuple[int, ...] = Field((), description="Ids that end it, besides the EOS.")
    ignore_eos: bool = Field(False, description="Go on after the end-of-turn token.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Report log-probabilities, with N alternatives."
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Report log-probabilities of the prompt's tokens, with N alternatives "
        "(rules ar and speculate).",
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _check_stop(cls, stop: Any) -> Any:
        texts = (stop,) if isinstance(stop, str) else stop
        if isinstance(texts, list | tuple) and "" in texts:
            raise ValueError("must hold texts that are not empty")
        return texts

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, temperature: float) -> float:
        if 0 < temperature < 0.01:  # so small a divisor makes logits infinite
            raise ValueError("must be 0 or at least 0.01")
        return temperature

    @field_validator("logit_bias")
    @classmethod
    def _check_bias(cls, bias: dict[int, float]) -> dict[int, float]:
        if not all(-100 <= value <= 100 for value in bias.values()):
            raise ValueError("must hold values between -100 and 100")
        return bias

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.min_tokens > self.max_new_tokens:
            raise OptionError(
                "min_tokens",
                self.min_tokens,
                f"exceeds max_new_tokens={self.max_new_tokens}",
                "lower it, or raise max_new_tokens",
            )
        if self.rule in AR_RULES:
            self._check_ar_rule()
        elif self.prompt_logprobs is not None and self.rule != "auto":
            raise OptionError(
                "prompt_logprobs",
                self.prompt_logprobs,
                f"is exact only from left to right, and rule={self.rule} does not go so",
                f"set rule to {' or '.join(AR_RULES)}, or leave it out",
            )
        if self.remask_threshold and self.rule == "prefix":
            raise OptionError(
                "remask_threshold",
                self.remask_threshold,
                "has nothing to mask under rule prefix, which leaves no token behind a mask",
                "set it to 0, or choose another rule",
            )
        return self

    def _check_ar_rule(self) -> None:
        for name in NOT_FROM_THE_LEFT:
            if value := getattr(self, name):
                raise OptionError(
                    name,
                    value,
                    f"has no effect with rule={self.rule}, which writes from left to right",
                    "leave it out, or choose another rule",
                )


def check_sampling(values: dict[str, Any], key: str) -> None:
    """Refuses what `SamplingSection` does not take.

    Args:
        values: its fields; others are left out.
        key: where they stand, for the error.

    Raises:
        OptionError: the first that cannot be used.
    """
    try:
        SamplingSection.model_validate(values)
    except ValidationError as error:
        raise first_problem(SamplingSection, error).under(key) from None


class SampleConfig(Section):
    """Sample from a checkpoint, one prompt after the other."""

    effective_if: ClassVar[Conditions] = {"system": {"chat": ("auto", True)}}

    model: LoadSection
    sampling: SamplingSection = SamplingSection()
    prompts: list[str] = Field(
        default_factory=lambda: ["What is 12 + 30?"], description="Prompts; '' is allowed."
    )
    chat: bool | Literal["auto"] = Field(
        "auto", description="Render with the chat template; auto: if there is one."
    )
    system: str | None = Field(None, description="System prompt.")


class ChatConfig(Section):
    """Talk to a checkpoint in the terminal."""

    effective_if: ClassVar[Conditions] = {"system": {"chat": ("auto", True)}}

    model: LoadSection
    sampling: SamplingSection = SamplingSection()
    chat: bool | Literal["auto"] = Field(
        "auto", description="Render with the chat template; auto: if there is one."
    )
    system: str | None = Field(None, description="System prompt.")
    history: str | None = Field(
        "~/.a2d_ray_chat_history", description="File that keeps what was typed; null: none."
    )
