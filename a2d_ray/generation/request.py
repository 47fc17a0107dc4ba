"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass

from a2d_ray.generation.canvas import Segments
from a2d_ray.generation.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt with its options.

    Attributes:
        request_id: unique among unfinished requests.
        prompt: segments of token ids; empty is allowed.
        params: options (`stop` texts are not the engine's business: it knows ids only).
        salt: requests share stored prompts only with requests of the same salt.
    """

    request_id: str
    prompt: Segments
    params: SamplingParams
    salt: str = ""


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one round brought for one request.

    Attributes:
        request_id: the request.
        token_ids: newly final tokens: the answer grows by them. Never the end-of-turn token.
        finish_reason: None while running; ``stop`` or ``length``.
        num_forwards: forwards so far.
        num_denoise_steps: forwards so far in which tokens were committed.
        canvas: the active window: ids, None where still masked.
        canvas_confidence: of each of its ids when it was committed; None where still masked.
        num_cached_tokens: prompt tokens that were found stored.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_forwards: int
    num_denoise_steps: int
    canvas: tuple[int | None, ...]
    canvas_confidence: tuple[float | None, ...]
    num_cached_tokens: int = 0
