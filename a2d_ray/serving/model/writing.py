"""One answer being written: the engine's outputs in, pieces of text out."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import StepOutput
from a2d_ray.serving.openai.options import StreamMode
from a2d_ray.serving.openai.pieces import CanvasToken, Counts, Piece, TokenInfo
from a2d_ray.text.stream import TextStream, decode


class TokenReader:
    """Texts of single tokens, for canvases and log-probabilities.

    Args:
        tokenizer: a Hugging Face tokenizer; used by one thread.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.text = lru_cache(maxsize=65536)(lambda token_id: _text_inside(tokenizer, [token_id]))

    def infos(self, output: StepOutput) -> tuple[TokenInfo, ...]:
        """The new tokens with their log-probabilities, if they were asked for."""
        return tuple(
            TokenInfo(
                self.text(entry.token_id),
                entry.logprob,
                tuple((self.text(token_id), logprob) for token_id, logprob in entry.top),
            )
            for entry in output.logprobs or ()
        )

    def read(self, output: StepOutput) -> tuple[CanvasToken | None, ...]:
        """What the active block holds from its first mask on; before it, all is final."""
        if None not in output.canvas:
            return ()
        first = output.canvas.index(None)
        pairs = zip(output.canvas[first:], output.canvas_confidence[first:], strict=True)
        return tuple(
            None
            if token_id is None or confidence is None
            else CanvasToken(self.text(token_id), confidence)
            for token_id, confidence in pairs
        )


class ChoiceWriter:
    """Turns the outputs of one request to the engine into the pieces of one choice.

    Args:
        tokenizer: of the model.
        reader: of the tokenizer.
        index: the choice.
        num_prompt_tokens: of its prompt; 0: it counts with another choice, as does what was cached.
        params: of the request: the texts and tokens that end the answer.
        keeps_stop: whether the text that ends it is part of it.
        mode: when pieces are given: as soon as a token is final, per block, or per denoise step.
        echo: text that comes before the answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        reader: TokenReader,
        *,
        index: int,
        num_prompt_tokens: int,
        params: SamplingParams,
        keeps_stop: bool,
        mode: StreamMode,
        echo: str = "",
    ) -> None:
        self._text = TextStream(tokenizer, params.stop, keeps_stop=keeps_stop)
        self._reader = reader
        self._stop_ids = params.stop_token_ids
        self._index = index
        self._num_prompt_tokens = num_prompt_tokens
        self._mode = mode
        self._pending = echo
        self._infos = list[TokenInfo]()
        self._has_stop = bool(params.stop)
        self._num_told = 0

    def push(self, output: StepOutput) -> Piece | None:
        """Takes a round's output; the piece that is due, its last one with a finish reason."""
        self._infos += self._reader.infos(output)
        self._pending += self._text.push(output.token_ids)
        if output.finish_reason is not None:
            self._pending += self._text.finish()
        reason = "stop" if self._text.is_stopped else output.finish_reason
        if reason is None and not self._is_due(output):
            return None
        text = self._pending
        self._pending = ""
        return Piece(
            index=self._index,
            text=text,
            finish_reason=reason,
            counts=_counts(output, self._num_prompt_tokens, self._text.num_tokens),
            canvas=self._reader.read(output) if self._mode == "denoise" and not reason else None,
            logprobs=self._due_infos(is_last=reason is not None),
            stop_reason=self._stop_reason(output),
        )

    def _stop_reason(self, output: StepOutput) -> str | int | None:
        if self._text.is_stopped:
            return self._text.stop_text
        return output.stop_token_id if output.stop_token_id in self._stop_ids else None

    def _due_infos(self, *, is_last: bool) -> tuple[TokenInfo, ...]:
        """Tokens not told of yet. Where texts may end the answer, all come at its end: only then
        is it known which tokens belong to it."""
        if self._has_stop and not is_last:
            return ()
        end = min(self._text.num_tokens, len(self._infos))
        due = self._infos[self._num_told : end]
        self._num_told = max(self._num_told, end)
        return tuple(due)

    def _is_due(self, output: StepOutput) -> bool:
        if self._mode == "denoise":
            return True
        is_block_whole = None not in output.canvas
        return bool(self._pending) and (self._mode == "prefix" or is_block_whole)


class InfillWriter:
    """Turns the outputs of a request with holes into the one piece of its answer.

    Args:
        tokenizer: of the model.
        parts: texts and numbers of masked tokens, as `LanguageModel.encode_infill` takes them.
        ids: of the whole text, None where masked.
    """

    def __init__(
        self, tokenizer: Any, parts: Sequence[str | int], ids: Sequence[int | None]
    ) -> None:
        self._tokenizer = tokenizer
        self._parts = parts
        self._open = [index for index, token_id in enumerate(ids) if token_id is None]
        self._num_given = len(ids) - len(self._open)
        self._ids = list[int]()

    def push(self, output: StepOutput) -> Piece | None:
        """Takes a round's output; the whole text when it is there."""
        self._ids += output.token_ids
        if output.finish_reason is None:
            return None
        holes = tuple(self._holes())
        rest = iter(holes)
        return Piece(
            index=0,
            text="".join(part if isinstance(part, str) else next(rest) for part in self._parts),
            finish_reason=output.finish_reason,
            counts=_counts(output, self._num_given, len(self._open)),
            holes=holes,
        )

    def _holes(self) -> Iterator[str]:
        num_read = 0
        for size in (part for part in self._parts if isinstance(part, int)):
            start = self._open[num_read]
            is_inside = start > 0  # at the beginning a decoder drops its first space
            ids = self._ids[start : start + size]
            num_read = num_read + size
            yield _text_inside(self._tokenizer, ids) if is_inside else decode(self._tokenizer, ids)


def _counts(output: StepOutput, num_prompt_tokens: int, num_tokens: int) -> Counts:
    return Counts(
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        num_forwards=output.num_forwards,
        num_denoise_steps=output.num_denoise_steps,
        num_cached_tokens=output.num_cached_tokens if num_prompt_tokens else 0,
    )


def _text_inside(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """What tokens add to a text. Some decoders drop the space that begins a text: of two copies
    the second one keeps its own.
    """
    once = decode(tokenizer, token_ids)
    twice = decode(tokenizer, [*token_ids, *token_ids])
    return f" {once}" if twice == f"{once} {once}" else once
