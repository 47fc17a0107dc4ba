"""Requests sent to a running endpoint of `jobs/serve.py`, or any OpenAI-compatible one."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import openai

from a2d_ray.config import AR_RULES, RULES, OptionError
from a2d_ray.evaluation.backends.local import Description
from a2d_ray.evaluation.backends.requests import (
    Answer,
    GenerateRequest,
    Score,
    ScoreRequest,
    prompt_room,
)
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.models.tokenizers import load_tokenizer
from a2d_ray.signals import Interrupt, noting_interrupts
from a2d_ray.text.stream import cut_at_stop

_log = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Got = TypeVar("Got")

# Options with a name of their own in the API; the others go into `diffusion`.
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "seed": "seed"}
TOP_LEVEL = {"ignore_eos", "stop_token_ids", "top_k", "min_p", "repetition_penalty", "min_tokens"}
TOP_LEVEL |= {"top_p", "presence_penalty", "frequency_penalty", "logit_bias"}
# No field of the API.
FIXED = ("cfg_scale", "cfg_keep_tokens", "suppress_tokens", "begin_suppress_tokens")
MAX_RETRIES = 20  # about two minutes of a server that restarts; a rate limit makes requests wait
FINGERPRINT_TIMEOUT_S = 60.0  # a replica that has just started reads its weights for a while
MAX_STOP = 4  # texts that the API takes; with more, answers are cut here


class EndpointBackend:
    """Generates and scores through HTTP, with many requests under way at a time.

    Args:
        base_url: such as ``http://127.0.0.1:8000/v1``.
        model: id of the served model; None: the only one.
        concurrency: requests under way.

    Raises:
        ValueError: several models are served and none was named.
    """

    def __init__(self, base_url: str, model: str | None = None, *, concurrency: int = 32) -> None:
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = openai.OpenAI(
            base_url=base_url, api_key=key, max_retries=MAX_RETRIES, timeout=600
        )
        self._base_url = base_url
        self._concurrency = concurrency
        self._card = self._read_card(model)
        self._model: str = self._card["id"]

    def describe(self) -> Description:
        """The address and name, and what the model's card tells."""
        fingerprint = _fingerprint(self._card)
        if fingerprint is None:
            _log.warning(
                "%s does not tell which weights %s has: its answers are kept for this run only",
                self._base_url,
                self._model,
            )
        diffusion = self._card.get("diffusion") or {}
        positions = self._card.get("max_model_len")
        return Description(
            tokenizer=None,
            objective=diffusion.get("objective"),
            # The last token is sent too, though it predicts nothing, and one has to be generated.
            max_length=positions and positions - 2,
            has_ar_mode=_has_ar_mode(self._card),
            fingerprint={
                "base_url": self._base_url,
                "served_model": self._model,
                "fingerprint": fingerprint,
            },
            is_identified=fingerprint is not None,
        )

    def _read_card(self, model: str | None) -> dict[str, Any]:
        """The model's card; one of ours is whole once a replica has read its weights."""
        until = time.monotonic() + FINGERPRINT_TIMEOUT_S
        while True:
            cards = {c.id: c for c in self._client.with_options(max_retries=5).models.list()}
            if model is None and len(cards) == 1:
                model = next(iter(cards))
            if model is None or model not in cards:
                raise ValueError(f"served_model={model}: {self._base_url} serves {list(cards)}")
            card = cards[model].model_dump()
            if "diffusion" not in card or _fingerprint(card) or time.monotonic() > until:
                return card
            time.sleep(0.5)

    def _check_model(self) -> None:
        """Refuses answers of two models as those of one."""
        before = _fingerprint(self._card)
        now = _fingerprint(self._read_card(self._model))
        if now != before:
            raise ValueError(
                f"{self._base_url} serves another {self._model} than at the start "
                f"({before} before, {now} now): evaluate again"
            )

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Answer]]:
        """Answers as they come back; see `_each`."""
        return self._each(self._ask, requests)

    def score(self, batches: Sequence[Sequence[ScoreRequest]]) -> Iterator[tuple[int, list[Score]]]:
        """Scores in the AR mode; a batch is there when its last request has come back."""
        places = [(b, i) for b, batch in enumerate(batches) for i in range(len(batch))]
        found: list[dict[int, Score]] = [{} for _ in batches]
        for index, score in self._each(self._score, [batches[b][i] for b, i in places]):
            b, i = places[index]
            found[b][i] = score
            if len(found[b]) == len(batches[b]):
                yield b, [found[b][i] for i in range(len(batches[b]))]

    def _each(
        self, ask: Callable[[Asked], Got], requests: Sequence[Asked]
    ) -> Iterator[tuple[int, Got]]:
        """What comes back for each, with its index, as it comes.

        After a failure or Ctrl-C nothing more is asked: what is under way comes, then the
        exception. A second Ctrl-C ends it at once.

        Raises:
            ValueError: the model behind the name changed in between.
        """
        interrupt = Interrupt()
        try:
            with noting_interrupts(interrupt):
                yield from self._results(ask, requests, interrupt)
        finally:
            if interrupt.is_set:
                raise KeyboardInterrupt
        self._check_model()

    def _results(
        self, ask: Callable[[Asked], Got], requests: Sequence[Asked], interrupt: Interrupt
    ) -> Iterator[tuple[int, Got]]:
        """Asks until there is no more, or a failure, or an interrupt."""
        waiting = iter(enumerate(requests))
        running: dict[Future[Got], int] = {}
        failure: BaseException | None = None
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            while True:
                is_over = interrupt.is_set or failure is not None
                free = 0 if is_over else self._concurrency - len(running)
                for index, request in islice(waiting, free):
                    running[pool.submit(ask, request)] = index
                if not running:
                    break
                # A signal that comes just before a lock is waited for does not end the wait.
                done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    index = running.pop(future)
                    if (error := future.exception()) is None:
                        yield index, future.result()
                    else:
                        failure = failure or error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def _ask(self, request: GenerateRequest) -> Answer:
        """An answer; a prompt that the server finds too long is asked again without its oldest
        tokens, and is answered by nothing where that helps neither."""
        body = request_body(request.params, self._card.get("diffusion"))
        try:
            return self._answer(request, body)
        except openai.BadRequestError as error:
            if not _is_too_long(error):
                raise
        if longest := self._card.get("max_model_len"):
            body["extra_body"]["truncate_prompt_tokens"] = prompt_room(request.params, longest)
            with contextlib.suppress(openai.BadRequestError):
                return replace(self._answer(request, body), is_cut=True)
        return Answer(
            text="", num_tokens=0, num_forwards=None, finish_reason="refused", is_cut=True
        )

    def _answer(self, request: GenerateRequest, body: dict[str, Any]) -> Answer:
        prompt: Any = request.prompt
        if isinstance(prompt, list):
            if prompt[-1]["role"] == "assistant":
                going_on = {"continue_final_message": True, "add_generation_prompt": False}
                body = body | {"extra_body": body["extra_body"] | going_on}
            reply: Any = self._client.chat.completions.create(
                model=self._model,
                messages=prompt,  # type: ignore[arg-type]
                **body,
            )
            text = reply.choices[0].message.content or ""
        else:
            if not isinstance(prompt, str):
                prompt = [token for segment in prompt for token in segment]
            reply = self._client.completions.create(model=self._model, prompt=prompt, **body)
            text = reply.choices[0].text
        usage = reply.usage
        diffusion = getattr(usage, "diffusion", None) or {}
        return Answer(
            text=cut_at_stop(text, request.params.stop),
            num_tokens=usage.completion_tokens,
            num_forwards=dict(diffusion).get("forwards"),
            finish_reason=reply.choices[0].finish_reason,
        )

    def _score(self, request: ScoreRequest) -> Score:
        """What the server tells of a continuation's tokens, with the most likely one beside each.

        Raises:
            ValueError: it tells nothing.
        """
        options: dict[str, Any] = {"prompt_logprobs": 1}
        if "diffusion" in self._card:
            options["diffusion"] = {"rule": "ar"}
        reply: Any = self._client.completions.create(
            model=self._model,
            prompt=[*request.context_ids, *request.continuation],
            max_tokens=1,
            temperature=0,
            extra_body=options,
        )
        told = getattr(reply.choices[0], "prompt_logprobs", None)
        if told is None:
            raise ValueError(
                f"{self._base_url} gives no prompt_logprobs, so no likelihoods: measure with "
                "model.path=CHECKPOINT instead of endpoint"
            )
        ids = request.continuation
        entries = told[-len(ids) :]
        own = [entry[str(token)]["logprob"] for token, entry in zip(ids, entries, strict=True)]
        best = [max(other["logprob"] for other in entry.values()) for entry in entries]
        return Score(nats=-sum(own), stderr=0.0, num_tokens=len(ids), is_greedy=own == best)


def served_tokenizer(path: str | None) -> Any:
    """The tokenizer of the checkpoint that an endpoint serves.

    Raises:
        OptionError: there is none.
    """
    try:
        return load_tokenizer(path or "")
    except ValueError as error:
        raise OptionError(
            "pretrained",
            path,
            f"gives no tokenizer, and likelihoods over HTTP are asked in token ids ({error})",
            "name the served checkpoint (in a suite: model.path)",
        ) from None


def _has_ar_mode(card: dict[str, Any]) -> bool:
    """Whether a served model verifies from left to right; other servers than ours do nothing
    else."""
    if "diffusion" not in card:
        return True
    return (card["diffusion"] or {}).get("lossless", "no") != "no"


def _fingerprint(card: dict[str, Any]) -> str | None:
    """Of the model, from its card; other servers than ours tell none."""
    return (card.get("diffusion") or {}).get("fingerprint")


def _is_too_long(error: openai.BadRequestError) -> bool:
    """Whether a prompt was refused for its length, by a server of ours or by another."""
    return error.code == "context_length_exceeded" or "context length" in str(error)


def request_body(params: SamplingParams, card: dict[str, Any] | None) -> dict[str, Any]:
    """Options of a request in the names of the HTTP API.

    Args:
        params: of the request.
        card: what a server of ours tells of the model under ``diffusion``: it has defaults of its
            own and is sent every option. None: another server, which is sent what differs from
            our defaults.

    Raises:
        ValueError: an option that the API does not have and that the server sets otherwise.
    """
    values = dict(vars(params))
    defaults = vars(SamplingParams())
    body: dict[str, Any] = {name: values.pop(key) for key, name in OPENAI_NAMES.items()}
    stop = list(values.pop("stop"))
    body["stop"] = stop if len(stop) <= MAX_STOP else []
    if card is None:
        body["stop"] = body["stop"] or None
        own = {k: v for k, v in values.items() if k == "rule" or v != defaults[k]}
        top_level = {key: own.pop(key) for key in TOP_LEVEL & own.keys()}
    else:
        top_level = {key: values[key] for key in TOP_LEVEL | {"n"}}
        own = _all_diffusion_options(params, card)
    body["extra_body"] = {"diffusion": own, **top_level}
    return {key: value for key, value in body.items() if value is not None}


def _all_diffusion_options(params: SamplingParams, card: dict[str, Any]) -> dict[str, Any]:
    """The options that the rule knows; what is None here is said in numbers, since null over HTTP
    means the server's default."""
    theirs = SamplingParams(**card.get("defaults") or {})
    for name in FIXED:
        wanted = getattr(params, name)
        found = getattr(theirs, name)
        if wanted != found:
            raise ValueError(
                f"{name}={wanted}: this endpoint samples with {found}, and requests cannot change "
                "it: set the model's sampling there, or measure with model.path=CHECKPOINT"
            )
    if params.rule == "auto" and card.get("lossless", "no") == "no":
        params = params.model_copy(update={"rule": "threshold"})  # the model's own, in full
    own = {key: getattr(params, key) for key in RULES[params.rule]}
    own["rule"] = params.rule
    if params.rule in ("auto", *AR_RULES):  # a block size would make it another rule
        own |= {
            "block_size": params.block_size,
            "remask_threshold": params.remask_threshold or None,
        }
        return {key: value for key, value in own.items() if value is not None}
    own["remask_threshold"] = params.remask_threshold
    own["block_size"] = block_size = params.block_size or card.get("block_size")
    if params.rule == "steps" and params.steps is None and block_size:
        own["steps"] = block_size * math.ceil(params.max_new_tokens / block_size)  # one per token
    return {key: value for key, value in own.items() if value is not None}
