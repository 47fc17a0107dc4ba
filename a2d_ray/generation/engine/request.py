"""What goes into the engine and what comes out of it."""

from dataclasses import dataclass

from a2d_ray.generation.decoding.canvas import Segments
from a2d_ray.generation.decoding.denoise import TokenLogprob
from a2d_ray.generation.decoding.grammar import Grammar
from a2d_ray.generation.decoding.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt with its options.

    Attributes:
        request_id: unique among unfinished requests.
        prompt: segments of token ids; empty is allowed; with holes (None) it is filled in.
        params: options, but for two that are not the engine's business: `stop` texts (it knows
            ids only) and `n` (every answer is a request).
        choice: which of the n answers to its prompt it is.
        grammar: what the answer obeys (`GRAMMAR_RULES`); no other request may use the object.
        salt: requests share stored prompts only with requests of the same salt.
    """

    request_id: str
    prompt: Segments
    params: SamplingParams
    choice: int = 0
    grammar: Grammar | None = None
    salt: str = ""


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one round brought for one request.

    Attributes:
        request_id: the request.
        token_ids: newly final tokens: the answer grows by them. Never the end-of-turn token.
        finish_reason: None while running; ``stop``, ``length`` or ``error``.
        num_forwards: forwards so far that it took part in (with guidance, by two branches).
        num_denoise_steps: forwards so far in which tokens were committed.
        canvas: the active window: ids, None where still masked; rule ``speculate``: the drafts
            behind the answer, which the next round verifies.
        canvas_confidence: of each of its ids when it was committed; None where still masked.
        is_draft: whether the canvas holds drafts: none of its ids is final.
        num_cached_tokens: prompt tokens that were found stored.
        logprobs: of `token_ids`, at the steps that committed them, if they were asked for.
        error: what ended this request alone, where `finish_reason` is ``error``.
        stop_token_id: the token that ended the answer, if one did.
        stop_logprob: its log-probability, nats, if log-probabilities were asked for (rules ``ar``
            and ``speculate``).
        prompt_logprobs: of the prompt's tokens but the first, once they are all known, if they
            were asked for.
        num_drafted: drafts so far that were verified (rule ``speculate``).
        num_accepted: how many of them were what the AR mode wrote.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_forwards: int
    num_denoise_steps: int
    canvas: tuple[int | None, ...]
    canvas_confidence: tuple[float | None, ...]
    is_draft: bool = False
    num_cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: Exception | None = None
    stop_token_id: int | None = None
    stop_logprob: float | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    num_drafted: int = 0
    num_accepted: int = 0
