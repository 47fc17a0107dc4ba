"""Answers in OpenAI's form, whole and in chunks, with what diffusion adds under ``usage``."""

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from a2d_ray.serving.openai.pieces import Candidate, Counts, Piece, TokenInfo, TokenName


class Sparse(BaseModel):
    """Leaves out fields of `sparse` that hold null, as OpenAI does."""

    sparse: ClassVar[tuple[str, ...]] = ("usage",)

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        return {k: v for k, v in values.items() if v is not None or k not in self.sparse}


class DiffusionUsage(BaseModel):
    """What the answer cost the model."""

    forwards: int
    denoise_steps: int
    drafted: int
    accepted: int
    tokens_per_forward: float


class PromptTokensDetails(BaseModel):
    """Of the prompts' tokens."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of the answers' tokens."""

    reasoning_tokens: int


class Usage(Sparse):
    """Tokens of all prompts and answers; those that were not emitted do not count."""

    sparse = ("completion_tokens_details",)

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None
    diffusion: DiffusionUsage

    @classmethod
    def of(cls, counts: Iterable[Counts]) -> "Usage":
        """The sum over the choices."""
        parts = list(counts)
        num_prompt = sum(part.num_prompt_tokens for part in parts)
        num_tokens = sum(part.num_tokens for part in parts)
        num_forwards = sum(part.num_forwards for part in parts)
        thoughts = [n for part in parts if (n := part.num_reasoning_tokens) is not None]
        details = CompletionTokensDetails(reasoning_tokens=sum(thoughts)) if thoughts else None
        return cls(
            prompt_tokens=num_prompt,
            completion_tokens=num_tokens,
            total_tokens=num_prompt + num_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(part.num_cached_tokens for part in parts)
            ),
            completion_tokens_details=details,
            diffusion=DiffusionUsage(
                forwards=num_forwards,
                denoise_steps=sum(part.num_denoise_steps for part in parts),
                drafted=sum(part.num_drafted for part in parts),
                accepted=sum(part.num_accepted for part in parts),
                tokens_per_forward=round(num_tokens / max(num_forwards, 1), 3),
            ),
        )


class CanvasSlot(BaseModel):
    """A token of the active block that is committed, though not final text yet; or a draft."""

    text: str
    confidence: float


class CanvasBody(BaseModel):
    """State of denoising (stream mode ``denoise``): replaces the one before, never adds to it."""

    replace: Literal[True] = True
    canvas: list[CanvasSlot | None]  # behind the final text; null: masked
    is_draft: bool  # the next chunk says how many of them were accepted
    forwards: int
    denoise_steps: int
    drafted: int
    accepted: int
    completion_tokens: int

    @classmethod
    def of(cls, piece: Piece) -> "CanvasBody | None":
        """The canvas that a piece carries."""
        if piece.canvas is None:
            return None
        return cls(
            canvas=[
                token and CanvasSlot(text=token.text, confidence=round(token.confidence, 3))
                for token in piece.canvas
            ],
            is_draft=piece.is_draft,
            forwards=piece.counts.num_forwards,
            denoise_steps=piece.counts.num_denoise_steps,
            drafted=piece.counts.num_drafted,
            accepted=piece.counts.num_accepted,
            completion_tokens=piece.counts.num_tokens,
        )


class Envelope(Sparse):
    """What every answer begins with."""

    id: str
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    system_fingerprint: str | None = None


class TopLogprob(BaseModel):
    """A token that was likely."""

    token: str
    logprob: float
    bytes: list[int] | None

    @classmethod
    def of(cls, name: TokenName, logprob: float) -> Self:
        """The entry of a token."""
        code = None if name.code is None else list(name.code)
        return cls(token=name.text, logprob=logprob, bytes=code)


class TokenLogprobBody(TopLogprob):
    """A token of the answer, as likely as it was at the step that committed it."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprobBody]
    refusal: None = None

    @classmethod
    def of(cls, infos: Iterable[TokenInfo]) -> Self:
        """Entries of tokens."""
        entries = []
        for info in infos:
            assert info.logprob is not None, "a chat's answer has no token without one"
            entry = TokenLogprobBody.of(info.name, info.logprob)
            top = [TopLogprob.of(name, logprob) for name, logprob in info.top]
            entries.append(entry.model_copy(update={"top_logprobs": top}))
        return cls(content=entries)


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a continuation, in the columns of OpenAI's older form."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    @classmethod
    def of(cls, infos: Sequence[TokenInfo]) -> Self:
        """Columns of tokens."""
        return cls(
            tokens=[info.name.text for info in infos],
            token_logprobs=[info.logprob for info in infos],
            top_logprobs=[None if info.logprob is None else _by_name(info.top) for info in infos],
            text_offset=[info.offset for info in infos],
        )


def _by_name(top: Iterable[tuple[TokenName, float]]) -> dict[str, float]:
    """Log-probabilities by name; of two tokens with one text the less likely goes by its id."""
    found: dict[str, float] = {}
    for name, logprob in top:
        found[f"token_id:{name.token_id}" if name.text in found else name.text] = logprob
    return found


class PromptLogprob(BaseModel):
    """A token at one place of a prompt, in vLLM's form."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""Of each token of a prompt: itself and the likely ones in its place, by id; null for the first."""


def prompt_logprobs_of(piece: Piece) -> PromptLogprobs | None:
    """What a choice's last piece tells of its prompt."""
    if piece.prompt_logprobs is None:
        return None
    return [_by_id(place) if place else None for place in piece.prompt_logprobs]


def _by_id(place: Iterable[Candidate]) -> dict[int, PromptLogprob]:
    return {
        each.token_id: PromptLogprob(logprob=each.logprob, rank=each.rank, decoded_token=each.text)
        for each in place
    }


class FunctionCall(BaseModel):
    """What is to be called, with a JSON text."""

    name: str
    arguments: str


class MessageToolCall(Sparse):
    """A call that the model asks for; `index` only in chunks."""

    sparse = ("index",)

    index: int | None = None
    id: str = Field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Sparse):
    """The answer to a chat."""

    sparse = ("reasoning_content", "tool_calls")

    role: Literal["assistant"] = "assistant"
    reasoning_content: str | None = None  # DeepSeek's: what it thought before it answered
    content: str | None
    refusal: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    stop_reason: str | int | None = None  # vLLM's: what of `stop` or `stop_token_ids` ended it


class ChatCompletion(Envelope):
    """Body of an answer to ``POST /v1/chat/completions``."""

    sparse = ("prompt_logprobs",)

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None


class Delta(Sparse):
    """What a chunk adds to the message."""

    sparse = ("role", "reasoning_content", "content", "tool_calls")

    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    content: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class ChatChunkChoice(Sparse):
    """What a chunk adds to one answer."""

    sparse = ("diffusion",)

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    diffusion: CanvasBody | None = None


class ChatCompletionChunk(Envelope):
    """One event of a streamed chat answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(Sparse):
    """One continuation, or what a chunk adds to it."""

    sparse = ("diffusion", "prompt_logprobs")

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    diffusion: CanvasBody | None = None


class Completion(Envelope):
    """Body of an answer to ``POST /v1/completions``, and one event of a streamed one."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None
