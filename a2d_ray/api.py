"""The Python API: load a checkpoint and generate with it, in this process."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.data.chat import render_prompt
from a2d_ray.generation.engine import Engine, EngineOptions, Request, StepOutput
from a2d_ray.generation.params import SamplingParams
from a2d_ray.models.checkpoint import load_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.models.device import resolve_device, resolve_dtype
from a2d_ray.text import TextStream

Prompt = str | Sequence[dict[str, Any]] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer, cut before a stop text.
        token_ids: its tokens, without the end-of-turn token.
        finish_reason: ``stop`` or ``length``.
        num_forwards: model forwards that it took; len(token_ids) / num_forwards is the TPF.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    num_forwards: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer that is being written.

    Attributes:
        text: new text, final.
        token_ids: new tokens, final.
        finish_reason: None until the last chunk.
        num_forwards: forwards so far.
        canvas: the active block: ids, None where still masked.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    num_forwards: int
    canvas: tuple[int | None, ...]


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint in memory.

    Attributes:
        model: the A2D model, a transformers module.
        tokenizer: its tokenizer; None: token-id prompts only.
        contract: how the checkpoint is to be used.
    """

    model: Any
    tokenizer: Any
    contract: Contract

    @property
    def max_length(self) -> int:
        """Positions of the model: prompt and answer together."""
        return int(self.model.config.max_position_embeddings)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end an answer, of the tokenizer, the model and its generation config."""
        holders = (self.tokenizer, self.model.config, self.model.generation_config)
        found = [getattr(h, "eos_token_id", None) for h in holders if h is not None]
        ids = [i for f in found for i in (f if isinstance(f, list | tuple) else [f])]
        return frozenset(i for i in ids if i is not None)

    def make_engine(self, options: EngineOptions | None = None) -> Engine:
        """An engine on this model; see `Engine`."""
        return Engine(
            self.model,
            self.contract,
            eos_ids=self.eos_token_ids,
            max_length=self.max_length,
            options=options,
        )

    def encode(self, prompt: Prompt) -> tuple[tuple[int, ...], ...]:
        """A prompt as segments of token ids.

        Args:
            prompt: text (continued as it is), chat messages (through the chat template), token
                ids, or segments of token ids.

        Raises:
            ValueError: text or chat without a tokenizer; something that is no prompt.
        """
        if isinstance(prompt, str):
            return (tuple(self._require_tokenizer()(prompt).input_ids),) if prompt else ()
        items = list(prompt) if isinstance(prompt, Sequence) else [None]
        if not items:
            return ()
        if all(isinstance(item, dict) for item in items):
            return tuple(map(tuple, render_prompt(items, self._require_tokenizer())))  # type: ignore[arg-type]
        if all(isinstance(item, int) for item in items):
            return (tuple(items),)  # type: ignore[arg-type]
        if all(isinstance(item, list | tuple) for item in items):
            return tuple(tuple(segment) for segment in items)  # type: ignore[arg-type]
        raise ValueError(
            f"a prompt is a text, a list of messages or a list of token ids, got {prompt!r:.100}"
        )

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Generation]:
        """Answers to prompts, in their order.

        Args:
            prompts: a list of texts, chats or token-id lists; or one of them alone.
            params: options, the same for all; None: the defaults.

        Raises:
            ValueError: see `encode` and `Engine.add_request`.
        """
        params = params or SamplingParams()
        asked = [(prompt, params) for prompt in _as_list(prompts)]
        answers = dict(self.answer_each(asked))
        return [answers[index] for index in range(len(asked))]

    def answer_each(
        self,
        requests: Iterable[tuple[Prompt, SamplingParams]],
        options: EngineOptions | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Index and answer of each request, as they finish: first done, first out.

        Args:
            requests: prompts with their own options; all are checked before the first forward.
            options: limits of the engine.

        Raises:
            ValueError: see `encode` and `Engine.add_request`.
        """
        engine, writers = self.make_engine(options), []
        for index, (prompt, params) in enumerate(requests):
            request = Request(request_id=str(index), prompt=self.encode(prompt), params=params)
            engine.add_request(request)
            writers.append(_Writer(self.tokenizer, params))
        while engine.has_unfinished():
            for output in engine.step():
                index = int(output.request_id)
                if writers[index].push(output).finish_reason is not None:
                    engine.abort(output.request_id)
                    yield index, writers[index].result()

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """One answer while it is written, a chunk per forward.

        Raises:
            ValueError: as `generate`.
        """
        params = params or SamplingParams()
        engine, writer = self.make_engine(), _Writer(self.tokenizer, params)
        engine.add_request(Request(request_id="0", prompt=self.encode(prompt), params=params))
        while engine.has_unfinished():
            for output in engine.step():
                chunk = writer.push(output)
                yield chunk
                if chunk.finish_reason is not None:
                    return

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: give the prompt as token ids")
        return self.tokenizer


def load(
    path: str | Path, *, dtype: str = "auto", device: str = "auto", **contract: Any
) -> LanguageModel:
    """Loads an A2D checkpoint for generation.

    Args:
        path: local directory or Hub id.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (bfloat16 where the device has it).
        device: ``cpu``, ``cuda``, ... or ``auto``.
        contract: overrides for a directory without a contract: ``mask_token_id``, ``objective``,
            ``block_size``, ``block_grid``.

    Raises:
        ValueError: what is wrong with the directory or an argument, and the fix.
    """
    place = resolve_device(device)
    loaded = load_checkpoint(path, dtype=resolve_dtype(dtype, place), device=place, **contract)
    return LanguageModel(loaded.model, loaded.tokenizer, loaded.contract)


class _Writer:
    """Turns a request's step outputs into text and counts."""

    def __init__(self, tokenizer: Any, params: SamplingParams) -> None:
        if tokenizer is None and params.stop:
            raise ValueError("stop texts need a tokenizer: use stop_token_ids")
        self._text = None if tokenizer is None else TextStream(tokenizer, params.stop)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None
        self._num_forwards = 0

    def push(self, output: StepOutput) -> Chunk:
        """Takes one round's output."""
        before = len(self._token_ids)
        self._token_ids += output.token_ids
        self._num_forwards, self._finish_reason = output.num_forwards, output.finish_reason
        piece = ""
        if self._text is not None:
            piece = self._text.push(output.token_ids)
            if self._text.is_stopped:
                self._finish_reason = "stop"
                self._token_ids = self._token_ids[: self._text.num_tokens]
            if self._finish_reason is not None:
                piece += self._text.finish()
        self._pieces.append(piece)
        return Chunk(
            text=piece,
            token_ids=self._token_ids[before:],
            finish_reason=self._finish_reason,
            num_forwards=self._num_forwards,
            canvas=output.canvas,
        )

    def result(self) -> Generation:
        """The whole answer."""
        return Generation(
            text="".join(self._pieces),
            token_ids=self._token_ids,
            finish_reason=self._finish_reason or "length",
            num_forwards=self._num_forwards,
        )


def _as_list(prompts: Any) -> list[Any]:
    """One prompt alone becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    return [items] if items and all(isinstance(item, dict | int) for item in items) else items
