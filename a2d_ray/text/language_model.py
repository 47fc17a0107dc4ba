"""The Python API: load a checkpoint and generate with it, in this process."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.data.chat import render_prompt
from a2d_ray.generation.decoding.canvas import Segments
from a2d_ray.generation.decoding.grammar import Grammar
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request, StepOutput
from a2d_ray.models.checkpoint import load_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.models.device import resolve_device, resolve_dtype
from a2d_ray.models.fingerprint import fingerprint, weights_hash
from a2d_ray.models.parts import context_length
from a2d_ray.text.answers import AnswerWriter, Chunk, Generation

__all__ = ["Chunk", "Generation", "InfillText", "LanguageModel", "Prompt", "load"]

Prompt = str | Sequence[dict[str, Any]] | Sequence[int] | Sequence[Sequence[int]]
InfillText = Sequence[str | int | None] | Sequence[Sequence[int | None]]


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
        return context_length(self.model.config)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end an answer: of tokenizer, model, generation config and contract."""
        holders = (self.tokenizer, self.model.config, self.model.generation_config)
        found = [getattr(h, "eos_token_id", None) for h in holders if h is not None]
        ids = [i for f in found for i in (f if isinstance(f, list | tuple) else [f])]
        return frozenset(i for i in [*ids, *self.contract.eos_token_ids] if i is not None)

    def fingerprint(self, weights: str | None = None) -> dict[str, Any]:
        """What tells this model from every other one; see `a2d_ray.models.fingerprint`.

        Args:
            weights: their hash, if it is known: computing it reads all of them.
        """
        return fingerprint(
            self.model,
            self.tokenizer,
            self.contract,
            eos_token_ids=self.eos_token_ids,
            weights=weights or weights_hash(self.model),
        )

    def make_engine(self, options: EngineOptions | None = None) -> Engine:
        """An engine on this model; see `Engine`."""
        return Engine(
            self.model,
            self.contract,
            eos_ids=self.eos_token_ids,
            max_length=self.max_length,
            options=options,
        )

    def encode(
        self,
        prompt: Prompt,
        *,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[int, ...], ...]:
        """A prompt as segments of token ids.

        Args:
            prompt: text (continued as it is), chat messages (through the chat template), token
                ids, or segments of token ids.
            continue_final_message: the last message of a chat, the assistant's, is how the answer
                begins.
            chat_template_kwargs: what the template reads besides the messages, such as
                ``enable_thinking``.

        Raises:
            ValueError: text or chat without a tokenizer; something that is no prompt.
        """
        if isinstance(prompt, str):
            return (tuple(self._require_tokenizer()(prompt).input_ids),) if prompt else ()
        items = list(prompt) if isinstance(prompt, Sequence) else [None]
        if not items:
            return ()
        if all(isinstance(item, dict) for item in items):
            segments = render_prompt(
                items,  # type: ignore[arg-type]
                self._require_tokenizer(),
                continue_final_message=continue_final_message,
                options=chat_template_kwargs,
            )
            return tuple(map(tuple, segments))
        if all(isinstance(item, int) for item in items):
            return (tuple(items),)  # type: ignore[arg-type]
        if all(isinstance(item, list | tuple) for item in items):
            return tuple(tuple(segment) for segment in items)  # type: ignore[arg-type]
        raise ValueError(
            f"a prompt is a text, a list of messages or a list of token ids, got {prompt!r:.100}"
        )

    def encode_infill(self, text: InfillText) -> tuple[tuple[int | None, ...], ...]:
        """A text with holes as segments of token ids, None where masked.

        Args:
            text: texts and numbers, a number N standing for N masked tokens:
                ``["12 + 30 = ", 3, "."]``; or token ids with None where masked, in one list or
                segment by segment. Special tokens that a text spells out, the mask token too, are
                ordinary text: give those that are meant as token ids.

        Raises:
            ValueError: nothing to fill in, texts without a tokenizer, or something else.
        """
        items = list(text)
        if any(isinstance(item, str) for item in items):
            ids: list[int | None] = []
            for item in items:
                if isinstance(item, str):
                    ids += self._literal_ids(item)
                elif isinstance(item, int) and item > 0:
                    ids += [None] * item
                else:
                    raise ValueError(f"a hole is a number of tokens, at least 1, got {item!r:.100}")
            segments: Any = [ids]
        else:
            segments = items if all(isinstance(i, list | tuple) for i in items) else [items]
        if not any(token is None for segment in segments for token in segment):
            raise ValueError(f"there is nothing to fill in: no holes in {text!r:.100}")
        if any(not isinstance(t, int | None) for segment in segments for t in segment):
            raise ValueError(f"a text with holes is token ids and None, got {text!r:.100}")
        return tuple(map(tuple, segments))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        grammar: Callable[[], Grammar] | None = None,
    ) -> list[Generation]:
        """Answers to prompts, in their order; with `params.n` > 1 the n of a prompt in a row.

        Args:
            prompts: a list of texts, chats or token-id lists; or one of them alone.
            params: options, the same for all but the seed, which draws apart for equal prompts;
                None: the defaults.
            grammar: makes the grammar of each answer (rules of `GRAMMAR_RULES`).

        Raises:
            ValueError: see `encode` and `Engine.add_request`.
            FloatingPointError: the model's logits are not finite.
        """
        params = params or SamplingParams()
        asked = (
            (self.encode(prompt), params.of_prompt(index))
            for index, prompt in enumerate(_as_list(prompts))
        )
        return self._in_order(self._answers(asked, None, grammar))

    def infill(
        self, texts: Sequence[InfillText], params: SamplingParams | None = None
    ) -> list[Generation]:
        """Texts whose holes are filled in; `text` and `token_ids` are the whole text.

        MDLM sees the text on both sides of a hole. BD3LM fills block by block from the left, as it
        was trained: a hole sees the text up to the end of its own block.

        Args:
            texts: see `encode_infill`.
            params: options (`max_new_tokens` and what ends an answer do not matter here).

        Raises:
            ValueError: see `encode_infill` and `Engine.add_request`.
        """
        params = params or SamplingParams()
        asked = (
            (self.encode_infill(text), params.of_prompt(index)) for index, text in enumerate(texts)
        )
        return self._in_order(self._answers(asked))

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
        yield from self._answers(((self.encode(p), params) for p, params in requests), options)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        engine: Engine | None = None,
    ) -> Iterator[Chunk]:
        """One answer while it is written, a chunk per forward; closing it ends the request.

        Args:
            prompt: see `encode`.
            params: options; None: the defaults.
            engine: an idle one of `make_engine`, which knows the turns before; None: a new one.

        Raises:
            ValueError: as `generate`; `n`, which cannot be streamed.
        """
        params = params or SamplingParams()
        if params.n > 1:
            raise ValueError(f"n ({params.n}): only one answer is streamed; use generate")
        engine = engine or self.make_engine()
        writer = AnswerWriter(self.tokenizer, params)
        engine.add_request(Request(request_id="0", prompt=self.encode(prompt), params=params))
        try:
            for output in _run(engine):
                chunk = writer.push(output)
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            engine.abort("0")

    def _answers(
        self,
        prompts: Iterable[tuple[Segments, SamplingParams]],
        options: EngineOptions | None = None,
        grammar: Callable[[], Grammar] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        engine = self.make_engine(options)
        writers: dict[str, tuple[int, AnswerWriter]] = {}
        for index, (prompt, params) in enumerate(prompts):
            for choice in range(params.n):
                request = Request(
                    request_id=f"{index}-{choice}",
                    prompt=prompt,
                    params=params,
                    choice=choice,
                    grammar=grammar() if grammar is not None else None,
                )
                writers[request.request_id] = index, AnswerWriter(self.tokenizer, params, choice)
                engine.add_request(request)
        for output in _run(engine):
            index, writer = writers[output.request_id]
            if writer.push(output).finish_reason is not None:
                engine.abort(output.request_id)
                yield index, writer.result()

    def _in_order(self, answers: Iterator[tuple[int, Generation]]) -> list[Generation]:
        found = sorted(answers, key=lambda pair: (pair[0], pair[1].choice))
        return [answer for _, answer in found]

    def _literal_ids(self, text: str) -> list[int]:
        tokenizer = self._require_tokenizer()
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

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
            ``block_size``, ``block_grid``, ``clean_attention``, ``right_shift_logits``,
            ``eos_token_ids``.

    Raises:
        ValueError: what is wrong with the directory or an argument, and the fix.
    """
    place = resolve_device(device)
    loaded = load_checkpoint(path, dtype=resolve_dtype(dtype, place), device=place, **contract)
    return LanguageModel(loaded.model, loaded.tokenizer, loaded.contract)


def _run(engine: Engine) -> Iterator[StepOutput]:
    while engine.has_unfinished():
        for output in engine.step():
            if output.error is not None:
                raise output.error
            yield output


def _as_list(prompts: Any) -> list[Any]:
    """One prompt alone becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    return [items] if items and all(isinstance(item, dict | int) for item in items) else items
