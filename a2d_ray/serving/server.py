"""One served model: requests in OpenAI's terms in, pieces of text out. No Ray, no HTTP."""

import asyncio
import random
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from a2d_ray.config import EngineSection, LimitsSection, SamplingSection
from a2d_ray.generation.engine import EngineOptions, Request
from a2d_ray.generation.params import SamplingParams
from a2d_ray.serving.engine_loop import AsyncEngine, EngineDeadError
from a2d_ray.serving.errors import ENGINE_DEAD, RequestError, not_ready
from a2d_ray.serving.metrics import ModelMetrics
from a2d_ray.serving.pieces import Piece
from a2d_ray.serving.protocol import ChatCompletionRequest, GenerationRequest, Prompt
from a2d_ray.serving.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from a2d_ray.serving.writing import CanvasReader, ChoiceWriter
from a2d_ray.text import decode

if TYPE_CHECKING:
    from a2d_ray.api import LanguageModel


class ModelServer:
    """Answers requests with one language model.

    Args:
        lm: the model; needs a tokenizer. Its engine is made here.
        defaults: options that a request leaves out.
        limits: of requests.
        engine: its options.
        round_timeout_s: an engine whose round takes longer counts as dead.
        name, replica: labels of the metrics.

    Raises:
        ValueError: the model has no tokenizer, or no objective.
    """

    def __init__(
        self,
        lm: "LanguageModel",
        defaults: SamplingSection | None = None,
        *,
        limits: LimitsSection | None = None,
        engine: EngineSection | None = None,
        round_timeout_s: float = 120.0,
        name: str = "a2d",
        replica: str = "0",
    ) -> None:
        if lm.tokenizer is None:
            raise ValueError("a model without a tokenizer cannot be served")
        if lm.contract.objective is None:
            raise ValueError(
                "a model that is converted but not trained cannot be served: train it, or set "
                "load.objective to bd3lm (or mdlm)"
            )
        self._lm, self._defaults = lm, defaults or SamplingSection()
        self._limits = limits or LimitsSection()
        options = EngineOptions(**(engine or EngineSection()).model_dump())
        core = lm.make_engine(options)
        self._engine = AsyncEngine(core, round_timeout_s=round_timeout_s)
        self._metrics = ModelMetrics(name, replica, core)
        self._canvas = CanvasReader(lm.tokenizer)
        self._seeds = random.Random(self._defaults.seed)
        # Fast tokenizers do not like two threads at once; one is enough beside a model.
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def generate(
        self, request: GenerationRequest, cache_salt: str = ""
    ) -> AsyncGenerator[Piece, None]:
        """Yields the pieces of all choices as they become final.

        Raises:
            RequestError: 400 for what the model cannot do, 503 if the engine died.
        """
        try:
            params = request.params(self._defaults, self._seeds.getrandbits(31))
            prompts = request.prompts()
            if len(prompts) > self._limits.max_choices:
                raise RequestError(
                    f"{len(prompts)} prompts exceed the {self._limits.max_choices} answers that "
                    f"this server gives to one request",
                    param="prompt",
                )
            choices = [
                self._choice(index, request, prompt, params, cache_salt)
                for index, prompt in enumerate(prompts)
            ]
            async with aclosing(_merge(choices)) as pieces:
                async for piece in pieces:
                    yield piece
        except ValueError as error:
            raise _refusal(error, request) from error
        except EngineDeadError as error:
            raise not_ready(str(error), code=ENGINE_DEAD) from error

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Token ids of a prompt.

        Raises:
            RequestError: 400 for a chat that the template refuses.
        """
        prompt = request.to_prompt()
        segments = await self._encode("messages" if request.messages else "prompt", prompt)
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
        index: int,
        request: GenerationRequest,
        prompt: Prompt,
        params: SamplingParams,
        cache_salt: str,
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one choice, its prompt first if it is to be echoed."""
        segments = await self._encode(_prompt_field(request), prompt)
        num_prompt_tokens = sum(map(len, segments))
        params = self._within_limits(request, params, num_prompt_tokens)
        writer = ChoiceWriter(
            self._lm.tokenizer,
            self._canvas,
            index=index,
            num_prompt_tokens=num_prompt_tokens,
            stop=tuple(params.stop),
            mode=request.stream_mode(),
            echo=await self._echo(prompt) if request.echoed() else "",
        )
        engine_request = Request(
            request_id=uuid.uuid4().hex, prompt=segments, params=params, salt=cache_salt
        )
        watch = self._metrics.watch()
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

    def _within_limits(
        self, request: GenerationRequest, params: SamplingParams, num_prompt_tokens: int
    ) -> SamplingParams:
        """Options with a length that fits, if the request leaves it open.

        Raises:
            RequestError: 400.
        """
        limits, asked = self._limits, request.max_new_tokens()
        if num_prompt_tokens > (limits.max_prompt_tokens or num_prompt_tokens):
            raise RequestError(
                f"the prompt has {num_prompt_tokens} tokens; this server takes at most "
                f"{limits.max_prompt_tokens}: shorten it",
                param=_prompt_field(request),
                code="context_length_exceeded",
            )
        most = limits.max_new_tokens or self._lm.max_length
        if asked is not None:
            if asked > most:
                raise RequestError(
                    f"max_tokens ({asked}) exceeds the {most} of this server: lower it",
                    param="max_tokens",
                )
            return params
        room = max(1, min(params.max_new_tokens, most, self._lm.max_length - num_prompt_tokens))
        return params.model_copy(update={"max_new_tokens": room})

    async def _encode(self, field: str, prompt: Prompt) -> tuple[tuple[int, ...], ...]:
        try:
            return await self._in_tokenizer_thread(self._lm.encode, prompt)
        except ValueError as error:
            raise RequestError(str(error), param=field) from error

    async def _echo(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        ids = [token for token in prompt if isinstance(token, int)]
        return await self._in_tokenizer_thread(decode, self._lm.tokenizer, ids)

    async def _in_tokenizer_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizer_thread, work, *args)


_FIELD_OF_PARAM = {
    "max_new_tokens": "max_tokens",
    "block_size": "diffusion.block_size",
    "steps": "diffusion.steps",
    "rule": "diffusion.rule",
    "threshold": "diffusion.threshold",
    "remasking": "diffusion.remasking",
}


def _refusal(error: ValueError, request: GenerationRequest) -> RequestError:
    """The engine's refusal in the request's own names; its messages begin with the field."""
    message = str(error).replace("max_new_tokens", "max_tokens")
    word = (re.match(r"\w*", str(error)) or [""])[0]
    if word == "prompt":
        return RequestError(message, param=_prompt_field(request), code="context_length_exceeded")
    known = word in type(request).model_fields
    return RequestError(message, param=_FIELD_OF_PARAM.get(word, word if known else None))


def _prompt_field(request: GenerationRequest) -> str:
    return "messages" if isinstance(request, ChatCompletionRequest) else "prompt"


async def _merge(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """The pieces of all streams as they come; the first error ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    merged: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def forward(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async for piece in stream:
                merged.put_nowait(piece)
        except Exception as error:  # raised where the pieces are read
            merged.put_nowait(error)
        else:
            merged.put_nowait(None)

    tasks = [asyncio.create_task(forward(stream)) for stream in streams]
    try:
        num_open = len(tasks)
        while num_open:
            item = await merged.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
