"""One answer being written: the engine's outputs in, pieces of text out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from a2d_ray.generation.decoding.denoise import TokenLogprob
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import StepOutput
from a2d_ray.serving.model.tokens import TextOffsets, TokenReader, text_inside
from a2d_ray.serving.openai.pieces import Candidate, Counts, Piece, TokenInfo
from a2d_ray.serving.openai.protocol import GenerationRequest
from a2d_ray.text.reasoning import ThoughtStream
from a2d_ray.text.stream import TextStream, decode


class ChoiceWriter:
    """Turns the outputs of one request to the engine into the pieces of one choice.

    Args:
        tokenizer: the checkpoint's; ids to text and back.
        reader: of the tokenizer.
        request: what was asked.
        index: the choice.
        prompt_ids: tokens of its prompt.
        is_first: of the prompt's choices: with it counts the prompt, and what of it was cached.
        params: of the decoder: the texts and tokens that end the answer.
        echo: text that comes before the answer.
        thoughts: tells the answer's thought apart; None: it is part of the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        reader: TokenReader,
        request: GenerationRequest,
        *,
        index: int,
        prompt_ids: Sequence[int],
        is_first: bool,
        params: SamplingParams,
        echo: str = "",
        thoughts: ThoughtStream | None = None,
    ) -> None:
        keeps_stop = bool(request.include_stop_str_in_output)
        self._text = TextStream(tokenizer, params.stop, keeps_stop=keeps_stop)
        self._reader = reader
        self._request = request
        self._stop_ids = params.stop_token_ids
        self._index = index
        self._prompt_ids = prompt_ids
        self._num_prompt_tokens = len(prompt_ids) if is_first else 0
        self._mode = request.stream_mode()
        self._echo = self._pending = echo
        self._thoughts = thoughts
        self._pending_thought = ""
        self._num_thought_tokens = None if thoughts is None else 0
        self._thought_end = 0  # characters, as they were when the tokens were counted
        self._num_echoed = len(prompt_ids) if request.scores_echo() else 0
        self._infos = list[TokenInfo]()
        self._text_offsets = TextOffsets(tokenizer, reader)
        self._offsets = list[int]()  # of the first infos: those that are certain
        self._has_stop = bool(params.stop)
        self._num_told = 0

    def push(self, output: StepOutput) -> Piece | None:
        """Takes a round's output; the piece that is due, its last one with a finish reason."""
        if self._request.max_tokens == 0:
            output = replace(output, token_ids=(), logprobs=None)
        if self._num_echoed and not self._infos and output.prompt_logprobs is not None:
            self._infos += self._prompt_infos(output.prompt_logprobs)
            self._offsets += self._text_offsets.push(self._prompt_ids, self._echo)
            self._offsets += self._text_offsets.finish(len(self._echo))
        entries = output.logprobs or ()
        self._infos += map(self._reader.info, entries)
        self._offsets += self._text_offsets.push(entry.token_id for entry in entries)
        text = self._text.push(output.token_ids)
        if output.finish_reason is not None:
            text += self._text.finish()
        reason = "stop" if self._text.is_stopped else output.finish_reason
        self._take(text, is_last=reason is not None)
        if reason is None and not self._is_due(output):
            return None
        text, thought = self._pending, self._pending_thought
        self._pending = self._pending_thought = ""
        return Piece(
            index=self._index,
            text=text,
            reasoning=thought,
            finish_reason=reason,
            counts=replace(
                _counts(output, self._num_prompt_tokens, self._text.num_tokens),
                num_reasoning_tokens=self._num_thought_tokens,
            ),
            canvas=self._reader.read(output) if self._mode == "denoise" and not reason else None,
            is_draft=output.is_draft,
            logprobs=self._due_infos(is_last=reason is not None),
            prompt_logprobs=self._candidates(output) if reason else None,
            stop_reason=self._stop_reason(output),
        )

    def _take(self, text: str, *, is_last: bool) -> None:
        """Text that is certain, its thought apart if that is asked for."""
        if self._thoughts is None:
            self._pending += text
            return
        parts = [self._thoughts.push(text)]
        if is_last:
            parts.append(self._thoughts.finish())
        for thought, answer in parts:
            self._pending_thought += "" if self._request.hides_reasoning() else thought
            self._pending += answer
        if self._thoughts.is_open:
            self._num_thought_tokens = self._text.num_tokens
        elif self._thought_end != self._thoughts.num_characters:
            self._thought_end = self._thoughts.num_characters
            self._num_thought_tokens = self._text.num_tokens_of(self._thought_end)

    def _prompt_infos(self, entries: Sequence[TokenLogprob]) -> Iterator[TokenInfo]:
        """Tokens of the prompt."""
        yield TokenInfo(self._reader.name(self._prompt_ids[0]), None, ())
        yield from map(self._reader.info, entries)

    def _candidates(self, output: StepOutput) -> tuple[tuple[Candidate, ...] | None, ...] | None:
        """The likely tokens in each place of the prompt, if they were asked for."""
        if self._request.prompt_logprobs is None or output.prompt_logprobs is None:
            return None
        known = map(self._reader.candidates, output.prompt_logprobs)
        return (None, *known) if self._prompt_ids else ()

    def _stop_reason(self, output: StepOutput) -> str | int | None:
        if self._text.is_stopped:
            return self._text.stop_text
        return output.stop_token_id if output.stop_token_id in self._stop_ids else None

    def _due_infos(self, *, is_last: bool) -> tuple[TokenInfo, ...]:
        """Tokens not told of yet. Where texts may end the answer, all come at its end: only then
        is it known which tokens belong to it."""
        if self._has_stop and not is_last:
            return ()
        if is_last:
            self._offsets += self._text_offsets.finish()
        end = min(self._num_echoed + self._text.num_tokens, len(self._offsets))
        due = slice(self._num_told, end)
        self._num_told = max(self._num_told, end)
        pairs = zip(self._infos[due], self._offsets[due], strict=True)
        return tuple(replace(info, offset=offset) for info, offset in pairs)

    def _is_due(self, output: StepOutput) -> bool:
        if self._mode == "denoise":
            return True
        is_block_whole = None not in output.canvas
        return bool(self._pending or self._pending_thought) and (
            self._mode == "prefix" or is_block_whole
        )


class InfillWriter:
    """Turns the outputs of a request with holes into the one piece of its answer.

    Args:
        tokenizer: the checkpoint's; ids to text and back.
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
            yield text_inside(self._tokenizer, ids) if is_inside else decode(self._tokenizer, ids)


def _counts(output: StepOutput, num_prompt_tokens: int, num_tokens: int) -> Counts:
    return Counts(
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        num_forwards=output.num_forwards,
        num_denoise_steps=output.num_denoise_steps,
        num_cached_tokens=output.num_cached_tokens if num_prompt_tokens else 0,
        num_drafted=output.num_drafted,
        num_accepted=output.num_accepted,
    )
