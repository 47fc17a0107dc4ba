"""What the Python API returns: whole answers, and pieces of one that is being written."""

from dataclasses import dataclass
from typing import Any

from a2d_ray.generation.decoding.denoise import TokenLogprob
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import StepOutput
from a2d_ray.text.stream import TextStream


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer, cut before a stop text; for infill the whole text.
        token_ids: its tokens, without the end-of-turn token.
        finish_reason: ``stop`` or ``length``.
        num_forwards: model forwards that it took; len(token_ids) / num_forwards is the TPF.
        choice: which of the n answers to its prompt.
        logprobs: of each token at its commitment, if `params.logprobs` asks for them.
        prompt_logprobs: of the prompt's tokens but the first, if `params.prompt_logprobs` does.
        num_drafted: drafts that were verified (rule ``speculate``).
        num_accepted: those of them that were what the AR mode wrote.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    num_forwards: int
    choice: int = 0
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer that is being written.

    Attributes:
        text: new text, final.
        token_ids: new tokens, final.
        finish_reason: None until the last chunk.
        num_forwards: forwards so far.
        canvas: the active block: ids, None where still masked; or drafts behind the answer.
        canvas_confidence: of its ids when they were committed, None where still masked.
        is_draft: whether the canvas holds drafts: none of its ids is final.
        logprobs: of the new tokens, if `params.logprobs` asks for them.
        num_drafted: drafts so far that were verified.
        num_accepted: those of them that were what the AR mode wrote.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    num_forwards: int
    canvas: tuple[int | None, ...]
    canvas_confidence: tuple[float | None, ...]
    is_draft: bool = False
    logprobs: list[TokenLogprob] | None = None
    num_drafted: int = 0
    num_accepted: int = 0


class AnswerWriter:
    """Turns a request's step outputs into text and counts.

    Args:
        tokenizer: None: ids only.
        params: of the request.
        choice: of the request.

    Raises:
        ValueError: stop texts without a tokenizer.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams, choice: int = 0) -> None:
        if tokenizer is None and params.stop:
            raise ValueError("stop texts need a tokenizer: use stop_token_ids")
        self._text = None if tokenizer is None else TextStream(tokenizer, params.stop)
        self._choice = choice
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._finish_reason: str | None = None
        self._last: StepOutput | None = None

    def push(self, output: StepOutput) -> Chunk:
        """Takes one round's output."""
        before = len(self._token_ids)
        self._token_ids += output.token_ids
        if self._logprobs is not None:
            self._logprobs += output.logprobs or ()
        self._last = output
        self._finish_reason = output.finish_reason
        piece = ""
        if self._text is not None:
            piece = self._text.push(output.token_ids)
            if self._text.is_stopped:
                self._finish_reason = "stop"
                del self._token_ids[self._text.num_tokens :]
                del (self._logprobs or [])[self._text.num_tokens :]
            if self._finish_reason is not None:
                piece += self._text.finish()
        self._pieces.append(piece)
        return Chunk(
            text=piece,
            token_ids=self._token_ids[before:],
            finish_reason=self._finish_reason,
            num_forwards=output.num_forwards,
            canvas=output.canvas,
            canvas_confidence=output.canvas_confidence,
            is_draft=output.is_draft,
            logprobs=None if self._logprobs is None else self._logprobs[before:],
            num_drafted=output.num_drafted,
            num_accepted=output.num_accepted,
        )

    def result(self) -> Generation:
        """The whole answer, once its last output was pushed."""
        assert self._last is not None, "no output was pushed"
        scored = self._last.prompt_logprobs
        return Generation(
            text="".join(self._pieces),
            token_ids=self._token_ids,
            finish_reason=self._finish_reason or "length",
            num_forwards=self._last.num_forwards,
            choice=self._choice,
            logprobs=self._logprobs,
            prompt_logprobs=None if scored is None else list(scored),
            num_drafted=self._last.num_drafted,
            num_accepted=self._last.num_accepted,
        )
