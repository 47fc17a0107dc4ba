"""Text with holes: what stands around them is given, the holes are denoised."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from a2d_ray.config import SamplingSection
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.http.errors import RequestError
from a2d_ray.serving.openai.options import Strict, only
from a2d_ray.serving.openai.pieces import Piece
from a2d_ray.serving.openai.protocol import GenerationRequest, RequestPrompt
from a2d_ray.serving.openai.responses import Usage

_DEFAULT_TOKENS = 16


class Hole(Strict):
    """Tokens to be filled in."""

    tokens: int = Field(ge=1, le=4096)


class InfillRequest(GenerationRequest):
    """Body of ``POST /v1/infill``: `prefix` and `suffix` around one hole of `max_tokens`, or
    `parts`: texts and holes in their order. Special tokens in the texts are ordinary text.
    """

    prefix: str | None = None
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=4096)
    parts: list[str | Hole] | None = Field(None, min_length=1, max_length=256)
    # A hole is as long as it is, and comes as a whole.
    n: Any = only(1)
    min_tokens: Any = only(0)
    stop: Any = only([])
    stop_token_ids: Any = only([])
    include_stop_str_in_output: Any = only(False)
    ignore_eos: Any = only(False)
    truncate_prompt_tokens: Any = only()
    prompt_logprobs: Any = only()
    stream: Any = only(False)
    stream_options: Any = only()

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        around = (self.prefix, self.suffix, self.max_tokens)
        if self.parts is None:
            if self.prefix is None and self.suffix is None:
                raise RequestError("send prefix, suffix or both, or parts", param="prefix")
        elif any(value is not None for value in around):
            raise RequestError(
                "parts replace prefix, suffix and max_tokens: send either", param="parts"
            )
        elif not any(isinstance(part, Hole) for part in self.parts):
            raise RequestError('parts hold no hole: send one as {"tokens": 8}', param="parts")
        if self.constraint() is not None:
            raise RequestError(
                f"{self.constraint()}: a text with holes has no form", param=self.constraint()
            )
        if self.diffusion is not None and self.diffusion.stream_mode is not None:
            raise RequestError(
                "diffusion.stream_mode: infill is not streamed", param="diffusion.stream_mode"
            )
        return self

    def prompts(self) -> list[RequestPrompt]:
        """The text, as one prompt."""
        return [self.to_parts()]

    def to_parts(self) -> list[str | int]:
        """Texts and sizes of holes in their order."""
        if self.parts is None:
            tokens = self.max_tokens or _DEFAULT_TOKENS
            return [self.prefix or "", tokens, self.suffix or ""]
        return [part.tokens if isinstance(part, Hole) else part for part in self.parts]

    def prompt_field(self) -> str:
        """The field that holds the text."""
        if self.parts is not None:
            return "parts"
        return "prefix" if self.prefix else "suffix"

    def length_field(self) -> str:
        """The field that says how long the holes are."""
        return "max_tokens" if self.parts is None else "parts"

    def max_new_tokens(self) -> int:
        """Tokens of all holes."""
        return sum(part for part in self.to_parts() if isinstance(part, int))

    def num_choices(self, defaults: SamplingSection) -> int:
        """One, whatever the model's default."""
        return 1

    def params(self, defaults: SamplingSection, seed: int) -> SamplingParams:
        """Options of the decoder; the holes' blocks share its steps."""
        without = {"min_tokens": 0, "prompt_logprobs": None}
        return super().params(defaults.model_copy(update=without), seed)


class Infilled(BaseModel):
    """Answer to ``POST /v1/infill``."""

    object: str = "infill"
    model: str
    text: str
    holes: list[str]
    usage: Usage

    @classmethod
    def of(cls, model: str, choices: Sequence[Sequence[Piece]]) -> Self:
        """The answer, from the only piece of the only choice."""
        ((piece,),) = choices
        return cls(
            model=model, text=piece.text, holes=list(piece.holes), usage=Usage.of([piece.counts])
        )
