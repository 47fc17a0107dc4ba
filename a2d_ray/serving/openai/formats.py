"""How pieces of text become the bodies of an endpoint."""

import uuid
from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel

from a2d_ray.serving.openai.pieces import Piece, TokenInfo
from a2d_ray.serving.openai.responses import (
    AssistantMessage,
    CanvasBody,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Envelope,
    FunctionCall,
    MessageToolCall,
    Usage,
    prompt_logprobs_of,
)
from a2d_ray.serving.openai.structured import may_be_call, parse_calls


class Format(Protocol):
    """How pieces become bodies of one endpoint. An instance belongs to one answer."""

    def whole(self, choices: Sequence[Sequence[Piece]]) -> BaseModel:
        """The complete answer, from the pieces of each choice."""

    def opening(self, index: int) -> list[BaseModel]:
        """Chunks before the first piece of a choice."""

    def chunks(self, piece: Piece) -> list[BaseModel]:
        """Chunks of a piece."""

    def usage(self, usage: Usage) -> BaseModel:
        """The chunk that carries the usage."""


class ChatFormat:
    """`Format` of ``/v1/chat/completions``.

    Args:
        model: its id.
        has_logprobs: whether log-probabilities were asked for.
        has_tools: whether an answer may be the call of a tool.
    """

    def __init__(self, model: str, *, has_logprobs: bool = False, has_tools: bool = False) -> None:
        self._envelope = Envelope(id=f"chatcmpl-{uuid.uuid4().hex}", model=model).model_dump()
        self._has_logprobs = has_logprobs
        self._has_tools = has_tools
        self._held: dict[int, str] = {}  # text of a choice that may become a call

    def whole(self, choices: Sequence[Sequence[Piece]]) -> ChatCompletion:
        """The complete answer."""
        return ChatCompletion(
            **self._envelope,
            choices=[self._choice(pieces) for pieces in choices],
            usage=_usage(choices),
            prompt_logprobs=prompt_logprobs_of(choices[0][-1]),
        )

    def opening(self, index: int) -> list[BaseModel]:
        """The chunk that names the role."""
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def chunks(self, piece: Piece) -> list[BaseModel]:
        """One chunk for the thought, one for the text, one for the end. Calls come as a whole, in
        one chunk."""
        text, calls = self._without_calls(piece)
        made: list[BaseModel] = []
        logprobs = self._logprobs(piece.logprobs) if piece.logprobs else None
        if piece.reasoning:
            made.append(self._chunk(piece.index, Delta(reasoning_content=piece.reasoning)))
        if text or calls or piece.canvas is not None or logprobs:
            numbered = [call.model_copy(update={"index": i}) for i, call in enumerate(calls)]
            delta = Delta(content=text or None, tool_calls=numbered or None)
            made.append(self._chunk(piece.index, delta, None, CanvasBody.of(piece), logprobs))
        if piece.finish_reason is not None:
            reason = _reason(piece, calls)
            made.append(self._chunk(piece.index, Delta(), reason, stop_reason=piece.stop_reason))
        return made

    def usage(self, usage: Usage) -> BaseModel:
        """The chunk that carries the usage."""
        return ChatCompletionChunk(**self._envelope, choices=[], usage=usage)

    def _choice(self, pieces: Sequence[Piece]) -> ChatChoice:
        text = "".join(piece.text for piece in pieces)
        last = pieces[-1]
        calls = self._calls(text, last.finish_reason)
        infos = [info for piece in pieces for info in piece.logprobs]
        message = AssistantMessage(
            reasoning_content="".join(piece.reasoning for piece in pieces) or None,
            content=None if calls else text,
            tool_calls=calls or None,
        )
        return ChatChoice(
            index=last.index,
            message=message,
            logprobs=self._logprobs(infos),
            finish_reason=_reason(last, calls) or "",
            stop_reason=last.stop_reason,
        )

    def _without_calls(self, piece: Piece) -> tuple[str, list[MessageToolCall]]:
        """Text that is no call for certain, and the calls that have become complete."""
        if not self._has_tools:
            return piece.text, []
        text = self._held.pop(piece.index, "") + piece.text
        if piece.finish_reason is None and may_be_call(text):
            self._held[piece.index] = text
            return "", []
        calls = self._calls(text, piece.finish_reason)
        return ("" if calls else text), calls

    def _calls(self, text: str, reason: str | None) -> list[MessageToolCall]:
        """The calls of an answer that has ended; one that its length has cut is left out."""
        if reason is None or not self._has_tools:
            return []
        return [
            MessageToolCall(function=FunctionCall(name=name, arguments=arguments))
            for name, arguments in parse_calls(text, is_cut=reason == "length")
        ]

    def _logprobs(self, infos: Sequence[TokenInfo]) -> ChatLogprobs | None:
        return ChatLogprobs.of(infos) if self._has_logprobs else None

    def _chunk(
        self,
        index: int,
        delta: Delta,
        reason: str | None = None,
        canvas: CanvasBody | None = None,
        logprobs: ChatLogprobs | None = None,
        *,
        stop_reason: str | int | None = None,
    ) -> BaseModel:
        choice = ChatChunkChoice(
            index=index,
            delta=delta,
            finish_reason=reason,
            stop_reason=stop_reason,
            diffusion=canvas,
            logprobs=logprobs,
        )
        return ChatCompletionChunk(**self._envelope, choices=[choice])


class CompletionFormat:
    """`Format` of ``/v1/completions``.

    Args:
        model: its id.
        has_logprobs: whether log-probabilities were asked for.
    """

    def __init__(self, model: str, *, has_logprobs: bool = False) -> None:
        self._envelope = Envelope(id=f"cmpl-{uuid.uuid4().hex}", model=model).model_dump()
        self._has_logprobs = has_logprobs

    def whole(self, choices: Sequence[Sequence[Piece]]) -> Completion:
        """The complete answer."""
        return Completion(
            **self._envelope,
            choices=[
                CompletionChoice(
                    index=pieces[-1].index,
                    text="".join(piece.text for piece in pieces),
                    finish_reason=pieces[-1].finish_reason,
                    stop_reason=pieces[-1].stop_reason,
                    logprobs=self._logprobs([i for piece in pieces for i in piece.logprobs]),
                    prompt_logprobs=prompt_logprobs_of(pieces[-1]),
                )
                for pieces in choices
            ],
            usage=_usage(choices),
        )

    def opening(self, index: int) -> list[BaseModel]:
        """Nothing: a completion has no role."""
        return []

    def chunks(self, piece: Piece) -> list[BaseModel]:
        """One chunk."""
        choice = CompletionChoice(
            index=piece.index,
            text=piece.text,
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
            diffusion=CanvasBody.of(piece),
            logprobs=self._logprobs(piece.logprobs),
        )
        return [Completion(**self._envelope, choices=[choice])]

    def usage(self, usage: Usage) -> BaseModel:
        """The chunk that carries the usage."""
        return Completion(**self._envelope, choices=[], usage=usage)

    def _logprobs(self, infos: Sequence[TokenInfo]) -> CompletionLogprobs | None:
        return CompletionLogprobs.of(infos) if self._has_logprobs else None


def _reason(last: Piece, calls: Sequence[MessageToolCall]) -> str | None:
    return "tool_calls" if calls and last.finish_reason == "stop" else last.finish_reason


def _usage(choices: Sequence[Sequence[Piece]]) -> Usage:
    return Usage.of(pieces[-1].counts for pieces in choices)
