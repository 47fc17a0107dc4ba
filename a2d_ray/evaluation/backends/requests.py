"""What an evaluation asks of a model, and what comes back. Plain values: no torch, no Ray."""

from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

from a2d_ray.config import LikelihoodKind
from a2d_ray.generation.decoding.params import SamplingParams

TokenSegments = tuple[tuple[int, ...], ...]
BackendPrompt = str | TokenSegments | list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """An answer that is asked for.

    Attributes:
        prompt: text, messages of a chat, or segments of token ids; see `LanguageModel.encode`.
        params: how to decode.
    """

    prompt: BackendPrompt
    params: SamplingParams


def prompt_room(params: SamplingParams, max_length: int) -> int:
    """Tokens that a prompt may have in a model of `max_length` positions.

    Raises:
        ValueError: none.
    """
    room = max_length - params.max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens ({params.max_new_tokens}) leaves no room for a prompt in the model's "
            f"{max_length} positions: lower it"
        )
    return room


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer.

    Attributes:
        text: cut before a stop text.
        num_tokens: its tokens, without the end-of-turn token.
        num_forwards: forwards that it took (None: the endpoint does not say).
        finish_reason: ``stop`` or ``length``; ``refused``: too long for the server.
        is_cut: whether the prompt was too long, so that its oldest tokens were left out.
    """

    text: str
    num_tokens: int
    num_forwards: int | None
    finish_reason: str
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A continuation whose likelihood is asked for.

    Attributes:
        context: segments of token ids before it; () for none.
        continuation: token ids, at least one.
        likelihood: ``nelbo``, or ``ar``: exact, in the AR mode, for which the rest does not matter.
        is_complete: the continuation is a whole answer, so that stopping (BD3LM's EOS fill) counts.
        num_draws: noise draws, each of two complementary views.
        block_size: of BD3LM; None: the checkpoint's own.
    """

    context: TokenSegments
    continuation: tuple[int, ...]
    likelihood: LikelihoodKind = "nelbo"
    is_complete: bool = False
    num_draws: int = 16
    block_size: int | None = None

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The context without its borders."""
        return tuple(chain.from_iterable(self.context))

    @property
    def num_tokens(self) -> int:
        """Tokens of context and continuation."""
        return sum(map(len, self.context)) + len(self.continuation)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Negative log-likelihood of a continuation, or the estimate of its NELBO.

    Attributes:
        nats: exact, or mean over the draws of the negative evidence lower bound.
        stderr: standard error of `nats` over the draws; 0 where it is exact, None where one draw
            was asked for.
        num_tokens: tokens of the continuation.
        is_greedy: whether each token is the AR mode's choice; None: a NELBO does not say.
    """

    nats: float
    stderr: float | None
    num_tokens: int
    is_greedy: bool | None = None


class LogLikelihood(float):
    """Nats, of a NELBO negated: the number that the harness wants, and how far draws leave it open.

    Args:
        nats: the log-likelihood.
        stderr: its standard error over the draws, as in `Score`.
    """

    stderr: float | None

    def __new__(cls, nats: float, stderr: float | None = None) -> Self:
        self = super().__new__(cls, nats)
        self.stderr = stderr
        return self


BackendRequest = GenerateRequest | ScoreRequest
BackendResult = Answer | Score


def to_values(request: BackendRequest) -> dict[str, Any]:
    """A request as JSON values, with its kind."""
    values = {"kind": type(request).__name__, **vars(request)}
    if isinstance(request, GenerateRequest):
        values["params"] = vars(request.params)
    return values
