"""Answers in OpenAI's form, whole and in chunks, with what diffusion adds under ``usage``."""

import time
import uuid
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from a2d_ray.serving.pieces import Counts, Piece


class DiffusionUsage(BaseModel):
    """What the answer cost the model."""

    forwards: int
    denoise_steps: int
    tokens_per_forward: float


class PromptTokensDetails(BaseModel):
    """Of the prompts' tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of all prompts and answers; those that were not emitted do not count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    diffusion: DiffusionUsage

    @classmethod
    def of(cls, counts: Iterable[Counts]) -> "Usage":
        """The sum over the choices."""
        parts = list(counts)
        num_prompt = sum(part.num_prompt_tokens for part in parts)
        num_tokens = sum(part.num_tokens for part in parts)
        num_forwards = sum(part.num_forwards for part in parts)
        return cls(
            prompt_tokens=num_prompt,
            completion_tokens=num_tokens,
            total_tokens=num_prompt + num_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(part.num_cached_tokens for part in parts)
            ),
            diffusion=DiffusionUsage(
                forwards=num_forwards,
                denoise_steps=sum(part.num_denoise_steps for part in parts),
                tokens_per_forward=round(num_tokens / max(num_forwards, 1), 3),
            ),
        )


class _Sparse(BaseModel):
    """Leaves out fields of `sparse` that hold null, as OpenAI does."""

    sparse: ClassVar[tuple[str, ...]] = ("usage",)

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        return {k: v for k, v in values.items() if v is not None or k not in self.sparse}


class CanvasSlot(BaseModel):
    """A token of the active block that is committed, though not final text yet."""

    text: str
    confidence: float


class Canvas(BaseModel):
    """State of denoising (stream mode ``denoise``): replaces the one before, never adds to it."""

    replace: Literal[True] = True
    canvas: list[CanvasSlot | None]  # behind the final text; null: masked
    forwards: int
    denoise_steps: int
    completion_tokens: int

    @classmethod
    def of(cls, piece: Piece) -> "Canvas | None":
        """The canvas that a piece carries."""
        if piece.canvas is None:
            return None
        return cls(
            canvas=[
                token and CanvasSlot(text=token.text, confidence=round(token.confidence, 3))
                for token in piece.canvas
            ],
            forwards=piece.counts.num_forwards,
            denoise_steps=piece.counts.num_denoise_steps,
            completion_tokens=piece.counts.num_tokens,
        )


class _Envelope(_Sparse):
    id: str
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    system_fingerprint: str | None = None


class AssistantMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: str


class ChatCompletion(_Envelope):
    """Body of an answer to ``POST /v1/chat/completions``."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class Delta(_Sparse):
    """What a chunk adds to the message."""

    sparse = ("role", "content")

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Sparse):
    """What a chunk adds to one answer."""

    sparse = ("diffusion",)

    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: str | None = None
    diffusion: Canvas | None = None


class ChatCompletionChunk(_Envelope):
    """One event of a streamed chat answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(_Sparse):
    """One continuation, or what a chunk adds to it."""

    sparse = ("diffusion",)

    index: int
    text: str
    logprobs: None = None
    finish_reason: str | None = None
    diffusion: Canvas | None = None


class Completion(_Envelope):
    """Body of an answer to ``POST /v1/completions``, and one event of a streamed one."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Format(Protocol):
    """How pieces become bodies of one endpoint. An instance belongs to one answer."""

    def whole(self, texts: list[str], last: list[Piece]) -> BaseModel:
        """The complete answer, from each choice's text and last piece."""

    def opening(self, index: int) -> list[BaseModel]:
        """Chunks before the first piece of a choice."""

    def chunks(self, piece: Piece) -> list[BaseModel]:
        """Chunks of a piece."""

    def usage(self, usage: Usage) -> BaseModel:
        """The chunk that carries the usage."""


class ChatFormat:
    """`Format` of ``/v1/chat/completions``."""

    def __init__(self, model: str) -> None:
        self._envelope = _Envelope(id=f"chatcmpl-{uuid.uuid4().hex}", model=model).model_dump()

    def whole(self, texts: list[str], last: list[Piece]) -> ChatCompletion:
        """The complete answer."""
        choices = [
            ChatChoice(
                index=piece.index,
                message=AssistantMessage(content=text),
                finish_reason=piece.finish_reason or "",
            )
            for text, piece in zip(texts, last, strict=True)
        ]
        usage = Usage.of(piece.counts for piece in last)
        return ChatCompletion(**self._envelope, choices=choices, usage=usage)

    def opening(self, index: int) -> list[BaseModel]:
        """The chunk that names the role."""
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def chunks(self, piece: Piece) -> list[BaseModel]:
        """One chunk for the text, one for the end."""
        made = []
        if piece.text or piece.canvas is not None:
            delta = Delta(content=piece.text or None)
            made.append(self._chunk(piece.index, delta, canvas=Canvas.of(piece)))
        if piece.finish_reason is not None:
            made.append(self._chunk(piece.index, Delta(), piece.finish_reason))
        return list(made)

    def usage(self, usage: Usage) -> BaseModel:
        """The chunk that carries the usage."""
        return ChatCompletionChunk(**self._envelope, choices=[], usage=usage)

    def _chunk(
        self, index: int, delta: Delta, reason: str | None = None, canvas: Canvas | None = None
    ) -> BaseModel:
        choice = ChatChunkChoice(index=index, delta=delta, finish_reason=reason, diffusion=canvas)
        return ChatCompletionChunk(**self._envelope, choices=[choice])


class CompletionFormat:
    """`Format` of ``/v1/completions``."""

    def __init__(self, model: str) -> None:
        self._envelope = _Envelope(id=f"cmpl-{uuid.uuid4().hex}", model=model).model_dump()

    def whole(self, texts: list[str], last: list[Piece]) -> Completion:
        """The complete answer."""
        choices = [
            CompletionChoice(index=piece.index, text=text, finish_reason=piece.finish_reason)
            for text, piece in zip(texts, last, strict=True)
        ]
        usage = Usage.of(piece.counts for piece in last)
        return Completion(**self._envelope, choices=choices, usage=usage)

    def opening(self, index: int) -> list[BaseModel]:
        """Nothing: a completion has no role."""
        return []

    def chunks(self, piece: Piece) -> list[BaseModel]:
        """One chunk."""
        choice = CompletionChoice(
            index=piece.index,
            text=piece.text,
            finish_reason=piece.finish_reason,
            diffusion=Canvas.of(piece),
        )
        return [Completion(**self._envelope, choices=[choice])]

    def usage(self, usage: Usage) -> BaseModel:
        """The chunk that carries the usage."""
        return Completion(**self._envelope, choices=[], usage=usage)
