"""What passes between a model and the HTTP application. No torch: the ingress needs none."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from a2d_ray.serving.openai.protocol import GenerationRequest
from a2d_ray.serving.openai.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a choice has cost.

    Attributes:
        num_prompt_tokens: tokens of its prompt, which counts with the first choice only.
        num_tokens: emitted tokens; those behind a stop string or end of turn do not count.
        num_forwards: model forwards that it took part in.
        num_denoise_steps: those of them in which tokens of it were committed.
        num_cached_tokens: those of them whose keys and values were found stored.
        num_drafted: drafts that were verified (rule ``speculate``).
        num_accepted: those of them that were what the AR mode wrote.
        num_reasoning_tokens: emitted tokens of its thought, marks included; None: not told apart.
    """

    num_prompt_tokens: int
    num_tokens: int = 0
    num_forwards: int = 0
    num_denoise_steps: int = 0
    num_cached_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_reasoning_tokens: int | None = None


@dataclass(frozen=True)
class CanvasToken:
    """A token that the active block holds already, or a draft.

    Attributes:
        text: its text alone.
        confidence: when it was committed or drafted, in [0, 1].
    """

    text: str
    confidence: float


@dataclass(frozen=True)
class TokenName:
    """What a token is called.

    Attributes:
        token_id: the token.
        text: its text alone; ``bytes:\\xe9`` for a part of a character, else ``token_id:5``.
        code: its bytes; None without text.
    """

    token_id: int
    text: str
    code: bytes | None


@dataclass(frozen=True)
class TokenInfo:
    """How likely a token was at the step that committed it, or in the prompt.

    Attributes:
        name: of the token.
        logprob: nats; None for the first token of a prompt, before which there is nothing.
        top: (name, log-probability) of the most likely tokens there, best first.
        offset: characters of the text before it.
    """

    name: TokenName
    logprob: float | None
    top: tuple[tuple[TokenName, float], ...]
    offset: int = 0


@dataclass(frozen=True)
class Candidate:
    """A token at one place of a prompt.

    Attributes:
        token_id: the token.
        text: its name.
        logprob: nats.
        rank: 1 for the most likely one; None for what is not among the alternatives asked for.
    """

    token_id: int
    text: str
    logprob: float
    rank: int | None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The next part of one choice: final text, to be appended.

    Attributes:
        index: the choice.
        text: may be empty.
        reasoning: of the thought before the text, if that is told apart; may be empty.
        finish_reason: ``stop`` or ``length`` in the choice's last piece, else None.
        counts: so far.
        stop_reason: the stop text or the id of `stop_token_ids` that ended the choice; else None.
        canvas: what the active block holds behind the final text, None where it is masked; it
            replaces the canvas before. None if it was not asked for.
        is_draft: whether the canvas holds drafts, which the next round verifies.
        logprobs: of the tokens since the last piece, if they were asked for.
        prompt_logprobs: in a choice's last piece, if they were asked for: for each token of the
            prompt itself and the likely ones in its place; None for the first.
        holes: what stands in the holes of a text that was to be filled in; its `text` is whole.
    """

    index: int
    text: str
    finish_reason: str | None
    counts: Counts
    stop_reason: str | int | None = None
    canvas: tuple[CanvasToken | None, ...] | None = None
    is_draft: bool = False
    logprobs: tuple[TokenInfo, ...] = ()
    prompt_logprobs: tuple[tuple[Candidate, ...] | None, ...] | None = None
    holes: tuple[str, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the card of a model (``GET /v1/models``) tells of its checkpoint.

    Attributes:
        objective: ``mdlm`` or ``bd3lm``; None for a model that is converted but not trained.
        lossless: whose answers rules ``ar`` and ``speculate`` give: the AR model's that it was
            converted from (``original``), its own AR mode's (``own``); ``no``: it has none.
        default_rule: of a request that names none.
        block_size: of an answer whose request names none.
        block_sizes: that were trained, others are refused; empty: any.
        max_model_len: tokens of prompt and answer together.
        fingerprint: hash of all that tells the model from every other one; None while the weights
            are being read.
    """

    objective: str | None
    lossless: Literal["original", "own", "no"]
    default_rule: str
    block_size: int
    block_sizes: tuple[int, ...]
    max_model_len: int
    fingerprint: str | None


class Server(Protocol):
    """What the HTTP application needs of a model, here or in another process."""

    def generate(
        self, request: GenerationRequest, cache_salt: str = ""
    ) -> AsyncGenerator[Piece, None]:
        """Yields the pieces of all choices; raises `RequestError`.

        Args:
            request: what was asked.
            cache_salt: prompts are cached for requests of the same salt only.
        """

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Token ids of a prompt; raises `RequestError`."""

    async def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        """Text of token ids; raises `RequestError`."""

    async def facts(self) -> ModelFacts:
        """What its checkpoint says; raises `RequestError`."""

    async def check_health(self) -> None:
        """Returns if the model can answer; raises `RequestError` (503) otherwise."""

    async def metrics(self) -> list[str]:
        """What its replicas count, in Prometheus' text format."""
