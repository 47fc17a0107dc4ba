"""One served model: requests in OpenAI's terms in, pieces of text out. No Ray, no HTTP."""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from a2d_ray.config import EngineSection, LimitsSection, OptionError, SamplingSection
from a2d_ray.config.errors import TooLongError
from a2d_ray.generation.decoding.ar_mode import has_ar_mode, with_own_rule
from a2d_ray.generation.decoding.canvas import check_prompt, keep_last
from a2d_ray.generation.decoding.grammar import GrammarError
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import EngineOptions, Request
from a2d_ray.http.errors import ENGINE_DEAD, RequestError, not_ready
from a2d_ray.models.contract import ARMode
from a2d_ray.models.fingerprint import values_hash, weights_hash
from a2d_ray.serving.model.engine_loop import AsyncEngine, EngineDeadError, GenerationError
from a2d_ray.serving.model.grammars import (
    GrammarCompiler,
    TokenGrammar,
    unfulfilled,
)
from a2d_ray.serving.model.merging import merge_pieces
from a2d_ray.serving.model.metrics import ModelMetrics
from a2d_ray.serving.model.thinking import grammar_behind_thoughts, thoughts_of
from a2d_ray.serving.model.tokens import TokenReader
from a2d_ray.serving.model.writing import ChoiceWriter, InfillWriter
from a2d_ray.serving.openai.infill import InfillRequest
from a2d_ray.serving.openai.options import DiffusionOptions
from a2d_ray.serving.openai.pieces import ModelFacts, Piece
from a2d_ray.serving.openai.protocol import GenerationRequest, RequestPrompt
from a2d_ray.serving.openai.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from a2d_ray.text.reasoning import ThoughtStream
from a2d_ray.text.stream import decode

if TYPE_CHECKING:
    from a2d_ray.text.language_model import LanguageModel

_log = logging.getLogger(__name__)


class ModelServer:
    """Answers requests with one language model.

    Args:
        lm: the model; needs a tokenizer. Its engine is made here.
        defaults: options that a request leaves out.
        limits: of requests.
        engine: its options.
        separate_reasoning: whether the thoughts of answers to chats are told apart, unless a
            request says otherwise.
        round_timeout_s: an engine whose round takes longer counts as dead.
        name: label of the metrics.
        replica: the other one; requests without a seed draw apart on replicas of other names.

    Raises:
        ValueError: the model has no tokenizer, or neither an objective nor an AR mode; `defaults`
            that it cannot serve.
    """

    def __init__(
        self,
        lm: "LanguageModel",
        defaults: SamplingSection | None = None,
        *,
        limits: LimitsSection | None = None,
        engine: EngineSection | None = None,
        separate_reasoning: bool = True,
        round_timeout_s: float = 120.0,
        name: str = "a2d",
        replica: str = "0",
    ) -> None:
        if lm.tokenizer is None:
            raise ValueError("a model without a tokenizer cannot be served")
        if lm.contract.objective is None and not has_ar_mode(lm.contract):
            raise ValueError(
                "a model without an AR mode that is converted but not trained cannot be served: "
                "train it, or set load.objective to bd3lm (or mdlm)"
            )
        self._lm = lm
        self._defaults = defaults or SamplingSection()
        own = SamplingParams(**self._defaults.model_dump())
        self._default_rule = with_own_rule(own, lm.contract).rule
        self._limits = limits or LimitsSection()
        self._separates_reasoning = separate_reasoning
        options = EngineOptions(**(engine or EngineSection()).model_dump())
        core = lm.make_engine(options)
        core.warm_up()
        self._engine = AsyncEngine(core, round_timeout_s=round_timeout_s)
        self._metrics = ModelMetrics(name, replica, core)
        self._reader = TokenReader(lm.tokenizer)
        self._vocab_size = lm.model.config.vocab_size
        self._grammars = GrammarCompiler(lm.tokenizer, self._vocab_size, lm.eos_token_ids)
        # Replicas that drew the same seeds would give the same answers to different requests.
        self._seeds = random.Random(f"{self._defaults.seed}/{replica}")
        self._fingerprint: str | None = None
        # Fast tokenizers do not like two threads at once; one is enough beside a model.
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        reader = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
        self._weights_hash = reader.submit(weights_hash, lm.model)  # seconds for a large model
        reader.shutdown(wait=False)

    async def generate(
        self, request: GenerationRequest, cache_salt: str = "", arrived: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Yields the pieces of all choices as they become final.

        Args:
            request: what was asked.
            cache_salt: prompts are cached for requests of the same salt only.
            arrived: `time.time()` when it came to the endpoint; None: now.

        Raises:
            RequestError: 400 for what the model cannot do, 500 if the request failed, 503 if the
                engine died.
        """
        arrived = time.time() if arrived is None else arrived
        try:
            params = request.params(self._defaults, self._seeds.getrandbits(31))
            prompts = request.prompts()
            n = request.num_choices(self._defaults)
            self._check_num_choices(len(prompts), n)
            asked = _Asked(request, cache_salt, arrived)
            choices = [
                self._choice(asked, prompt, params.of_prompt(index), index * n + choice, choice)
                for index, prompt in enumerate(prompts)
                for choice in range(n)
            ]
            async with aclosing(merge_pieces(choices)) as pieces:
                async for piece in pieces:
                    yield piece
        except ValueError as error:
            raise _refusal(error, request) from error
        except GenerationError as error:
            if isinstance(error.__cause__, GrammarError):
                raise unfulfilled(request.constraint() or "", error.__cause__) from error
            _log.exception("a request failed")
            raise RequestError(str(error), status=500, code="generation_failed") from error
        except EngineDeadError as error:
            raise not_ready(str(error), code=ENGINE_DEAD) from error

    def _check_num_choices(self, num_prompts: int, n: int) -> None:
        most = self._limits.max_choices
        if num_prompts * n > most:
            raise RequestError(
                f"{num_prompts} prompts x n={n} exceed the {most} answers that this server gives "
                f"to one request",
                param="n" if n > 1 else "prompt",
            )

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Token ids of a prompt.

        Raises:
            RequestError: 400 for a chat that the template refuses.
        """
        prompt = request.to_prompt()
        encode = partial(self._lm.encode, chat_template_kwargs=request.template_options())
        segments = await self._encode(request, encode, prompt)
        ids = [token for segment in segments for token in segment]
        return Tokens(count=len(ids), max_model_len=self._lm.max_length, tokens=ids)

    async def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        """Text of token ids, special tokens included.

        Raises:
            RequestError: 400 for an id outside the vocabulary.
        """
        vocab = len(self._lm.tokenizer)
        for index, token in enumerate(request.tokens):
            if not 0 <= token < vocab:
                raise RequestError(
                    f"tokens[{index}] ({token}) is outside the vocabulary of {vocab}",
                    param=f"tokens[{index}]",
                )
        text = await self._in_tokenizer_thread(self._lm.tokenizer.decode, request.tokens)
        return Detokenized(prompt=text)

    async def facts(self) -> ModelFacts:
        """What the checkpoint says."""
        contract = self._lm.contract
        if self._fingerprint is None and self._weights_hash.done():
            weights = self._weights_hash.result()
            values = await self._in_tokenizer_thread(self._lm.fingerprint, weights)
            self._fingerprint = values_hash(values)
        return ModelFacts(
            objective=contract.objective,
            lossless=_LOSSLESS[contract.ar_mode] if has_ar_mode(contract) else "no",
            default_rule=self._default_rule,
            block_size=contract.block_size,
            block_sizes=contract.block_sizes,
            max_model_len=self._lm.max_length,
            fingerprint=self._fingerprint,
        )

    async def metrics(self) -> list[str]:
        """What was counted since the start, in Prometheus' text format."""
        return [self._metrics.text()]

    async def check_health(self) -> None:
        """Returns if the engine lives.

        Raises:
            RequestError: 503.
        """
        try:
            self._engine.check_health()
        except EngineDeadError as error:
            raise not_ready(str(error), code=ENGINE_DEAD) from error

    def close(self) -> None:
        """Ends the engine's thread; requests that wait fail."""
        self._engine.close()
        self._tokenizer_thread.shutdown(wait=False)

    async def _choice(
        self,
        asked: "_Asked",
        prompt: RequestPrompt,
        params: SamplingParams,
        index: int,
        choice: int,
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one choice, its prompt first if it is to be echoed."""
        request = asked.request
        segments = await self._encode(request, self._encoder(request), prompt)
        given = [token for segment in segments for token in segment if token is not None]
        params = self._within_limits(request, params, len(given))
        check_prompt(segments, params, self._lm.max_length, self._vocab_size)
        told_apart = partial(thoughts_of, default=self._separates_reasoning)
        thoughts = await self._in_tokenizer_thread(
            told_apart, request, self._lm.tokenizer, segments
        )
        grammar = await self._in_tokenizer_thread(self._grammar, request, thoughts)
        writer: ChoiceWriter | InfillWriter
        if isinstance(request, InfillRequest):
            writer = InfillWriter(self._lm.tokenizer, request.to_parts(), segments[0])
        else:
            writer = ChoiceWriter(
                self._lm.tokenizer,
                self._reader,
                request,
                index=index,
                prompt_ids=given,
                is_first=choice == 0,
                params=params,
                echo=await self._echo(prompt) if request.echoed() else "",
                thoughts=thoughts,
            )
        engine_request = Request(
            request_id=uuid.uuid4().hex,
            prompt=segments,
            params=params,
            choice=choice,
            grammar=grammar,
            salt=asked.cache_salt,
        )
        watch = self._metrics.watch(asked.arrived)
        try:
            async with aclosing(self._engine.generate(engine_request)) as outputs:
                async for output in outputs:
                    watch.round(output)
                    piece = writer.push(output)
                    if piece is None:
                        continue
                    watch.piece(piece)
                    yield piece
                    if piece.finish_reason is not None:
                        return
        finally:
            watch.ended()

    def _grammar(
        self, request: GenerationRequest, thoughts: ThoughtStream | None
    ) -> TokenGrammar | None:
        """The form of an answer, at its beginning; every choice needs one of its own."""
        field = request.constraint()
        if field is None:
            return None
        source = grammar_behind_thoughts(request, self._lm.tokenizer, thoughts)
        return self._grammars.compile(source, field)

    def _within_limits(
        self, request: GenerationRequest, params: SamplingParams, num_prompt_tokens: int
    ) -> SamplingParams:
        """Options with a length that fits, if the request leaves it open.

        Raises:
            RequestError: 400.
        """
        limits = self._limits
        asked = request.max_new_tokens()
        if num_prompt_tokens > (limits.max_prompt_tokens or num_prompt_tokens):
            raise RequestError(
                f"the prompt has {num_prompt_tokens} tokens; this server takes at most "
                f"{limits.max_prompt_tokens}: shorten it",
                param=request.prompt_field(),
                code="context_length_exceeded",
            )
        most = limits.max_new_tokens or self._lm.max_length
        if asked is not None:
            if asked > most:
                field = request.length_field()
                raise RequestError(
                    f"{field} ({asked} tokens) exceeds the {most} of this server: lower it",
                    param=field,
                )
            return params
        room = max(1, min(params.max_new_tokens, most, self._lm.max_length - num_prompt_tokens))
        return params.model_copy(update={"max_new_tokens": room})

    def _encoder(self, request: GenerationRequest) -> Callable[[Any], Any]:
        """How the prompt of a request becomes segments."""
        if isinstance(request, InfillRequest):
            return self._lm.encode_infill
        kept = request.truncate_prompt_tokens

        def encode(prompt: Any) -> tuple[tuple[int, ...], ...]:
            segments = self._lm.encode(
                prompt,
                continue_final_message=request.continues_answer(),
                chat_template_kwargs=request.template_options(),
            )
            return segments if kept is None else keep_last(segments, kept)

        return encode

    async def _encode(
        self,
        request: GenerationRequest | TokenizeRequest,
        encode: Callable[[Any], Any],
        prompt: RequestPrompt,
    ) -> tuple[tuple[int | None, ...], ...]:
        try:
            return await self._in_tokenizer_thread(encode, prompt)
        except ValueError as error:
            field = error.field if isinstance(error, OptionError) else ""
            is_field = field in type(request).model_fields
            raise RequestError(
                str(error), param=field if is_field else request.prompt_field()
            ) from error

    async def _echo(self, prompt: RequestPrompt) -> str:
        if isinstance(prompt, str):
            return prompt
        ids = [token for token in prompt if isinstance(token, int)]
        return await self._in_tokenizer_thread(decode, self._lm.tokenizer, ids)

    async def _in_tokenizer_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizer_thread, work, *args)


@dataclass(frozen=True)
class _Asked:
    """What all choices of a request share; `arrived` as `time.time()`."""

    request: GenerationRequest
    cache_salt: str
    arrived: float


_LOSSLESS: dict[ARMode | None, Literal["original", "own", "no"]] = {
    "original": "original",
    "trained": "own",
    None: "no",
}
_FIELD_OF_PARAM = {name: f"diffusion.{name}" for name in DiffusionOptions.model_fields}


def _refusal(error: ValueError, request: GenerationRequest) -> RequestError:
    """The engine's refusal in the request's own names."""
    message = str(error).replace("max_new_tokens", request.length_field())
    field = error.field if isinstance(error, OptionError) else ""
    if field == "prompt":  # its length, or an id that is none
        code = "context_length_exceeded" if isinstance(error, TooLongError) else "invalid_value"
        return RequestError(message, param=request.prompt_field(), code=code)
    if field == "max_new_tokens":
        return RequestError(message, param=request.length_field())
    if field == "prompt_logprobs":
        return RequestError(message, param=request.prompt_logprobs_field())
    known = field if field in type(request).model_fields else None
    return RequestError(message, param=_FIELD_OF_PARAM.get(field, known))
