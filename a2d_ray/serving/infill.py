"""Text with holes: what stands around them is given, the holes are denoised."""

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from a2d_ray.config import SamplingSection
from a2d_ray.generation.params import SamplingParams
from a2d_ray.serving.options import DiffusionOptions, Strict
from a2d_ray.serving.responses import Usage


class Hole(Strict):
    """Tokens to be filled in."""

    tokens: int = Field(ge=1, le=4096)


class InfillRequest(Strict):
    """Body of ``POST /v1/infill``: `prefix` and `suffix` around one hole of `max_tokens`, or
    `parts`: texts and holes in their order.
    """

    model: str
    prefix: str | None = None
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=4096)
    parts: list[str | Hole] | None = Field(None, min_length=1, max_length=256)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    diffusion: DiffusionOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        around = (self.prefix, self.suffix, self.max_tokens)
        if self.parts is None:
            if self.prefix is None and self.suffix is None:
                raise ValueError("send prefix, suffix or both, or parts")
        elif any(value is not None for value in around):
            raise ValueError("parts replace prefix, suffix and max_tokens: send either")
        elif not any(isinstance(part, Hole) for part in self.parts):
            raise ValueError('parts hold no hole: send one as {"tokens": 8}')
        if self.diffusion is not None and self.diffusion.stream_mode is not None:
            raise ValueError("diffusion.stream_mode: infill is not streamed")
        return self

    def to_parts(self) -> list[str | Hole]:
        """Texts and holes in their order."""
        if self.parts is not None:
            return self.parts
        return [self.prefix or "", Hole(tokens=self.max_tokens or 16), self.suffix or ""]

    def params(self, defaults: SamplingSection, seed: int, num_tokens: int) -> SamplingParams:
        """Options of the decoder; steps are shared by the holes' blocks."""
        asked: dict[str, Any] = (self.diffusion or DiffusionOptions()).asked()
        asked |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        values = defaults.model_dump() | {"seed": seed, "max_new_tokens": num_tokens, "n": 1}
        if asked.get("rule") not in (None, defaults.rule):
            values.pop("steps")
        return SamplingParams(**values | {k: v for k, v in asked.items() if v is not None})


class Infilled(BaseModel):
    """Answer to ``POST /v1/infill``."""

    object: str = "infill"
    model: str
    text: str
    holes: list[str]
    usage: Usage
