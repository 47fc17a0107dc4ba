"""Suite ``serving``: the HTTP application over a real socket, against one request at a time.

The model of suite ``sampling`` (135 M parameters, random weights, bfloat16), block 8, one token per
forward, streamed answers of mixed lengths. Client and server share this process, so its CPU
seconds hold both.
"""

import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import torch

from a2d_ray.api import LanguageModel
from a2d_ray.benchmarks.harness import Case
from a2d_ray.benchmarks.sampling import MASK_ID, SHAPE, make_model, make_prompt
from a2d_ray.config import BenchmarkConfig, EngineSection
from a2d_ray.models.contract import Contract
from a2d_ray.serving.app import create_app
from a2d_ray.serving.server import ModelServer

_BLOCK_SIZE = 8


@dataclass(frozen=True)
class Answer:
    """When the pieces of one streamed answer arrived.

    Attributes:
        asked: when it was asked for, in seconds.
        arrived: when each chunk with text came.
        num_tokens: of the answer.
        num_cached: prompt tokens that were found stored.
    """

    asked: float
    arrived: list[float]
    num_tokens: int
    num_cached: int

    @property
    def first_s(self) -> float:
        """Seconds to the first text."""
        return self.arrived[0] - self.asked


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """The cases that the configuration names; all of them if it names none.

    Raises:
        ValueError: an unknown case.
    """
    torch.set_num_threads(config.threads)
    cases: dict[str, Callable[[str, BenchmarkConfig], Case]] = {
        "clients8": clients8,
        "lock8": lock8,
        "turns": turns,
    }
    unknown = set(config.cases or ()) - set(cases)
    if unknown:
        raise ValueError(f"cases: {sorted(unknown)} unknown, choose from {sorted(cases)}")
    with listening(config) as url:
        asyncio.run(load(url, [body(config, 0)]))  # warm-up
        for name in config.cases or cases:
            yield cases[name](url, config)


def clients8(url: str, config: BenchmarkConfig) -> Case:
    """The same requests by one client after the other and by eight at a time; 1 to 16 beside.

    Tokens per CPU second; every client sends its next request when it has its answer.
    """
    sizes = (1, 8) if config.quick else (1, 2, 4, 8, 16)
    bodies = [body(config, i) for i in range(8 if config.quick else 16)]
    runs: dict[int, list[tuple[float, dict[str, float]]]] = {n: [] for n in sizes}
    for _ in range(1 if config.quick else 2):
        for n in sizes:  # they take turns
            cpu = time.process_time()
            figures = summary(asyncio.run(load(url, bodies, num_clients=n)))
            runs[n].append((figures["tokens"] / (time.process_time() - cpu), figures))
    speed = {n: statistics.median(each[0] for each in runs[n]) for n in sizes}
    return Case(
        name="clients8",
        ours=speed[8],
        baseline=speed[1],
        unit="tokens per CPU second, 8 clients against 1",
        is_cost=False,
        facts={
            "tokens_per_cpu_s": {n: round(v, 2) for n, v in speed.items()},
            "by_clients": {n: medians([each[1] for each in runs[n]]) for n in sizes},
        },
    )


def lock8(url: str, config: BenchmarkConfig) -> Case:
    """p95 time to the first text of eight clients: continuous batching against a lock."""
    bodies = [body(config, i) for i in range(8)]
    ours, locked = [], []
    for _ in range(1 if config.quick else 2):
        ours.append(summary(asyncio.run(load(url, bodies))))
        locked.append(summary(asyncio.run(load(url, bodies, num_clients=1, is_queue=True))))
    ours_s, locked_s = (
        statistics.median(f["first_p95_s"] for f in figures) for figures in (ours, locked)
    )
    return Case(
        name="lock8",
        ours=ours_s,
        baseline=locked_s,
        unit="seconds to the first text, p95 of 8 clients",
        facts={"batched": medians(ours), "locked": medians(locked)},
    )


def turns(url: str, config: BenchmarkConfig) -> Case:
    """Time to the first text of a second turn whose 512 tokens are stored, against a new prompt."""
    new_s, stored_s, cached = [], [], []
    for i in range(2 if config.quick else 5):
        prompt = make_prompt(512, config.seed + 1000 + i)
        options = {"max_tokens": _BLOCK_SIZE}
        (first,) = asyncio.run(load(url, [body(config, 0) | options | {"prompt": prompt}]))
        prompt = prompt + make_prompt(16, config.seed + 2000 + i)
        (second,) = asyncio.run(load(url, [body(config, 0) | options | {"prompt": prompt}]))
        new_s.append(first.first_s)
        stored_s.append(second.first_s)
        cached.append(second.num_cached)
    return Case(
        name="turns",
        ours=statistics.median(stored_s),
        baseline=statistics.median(new_s),
        unit="seconds to the first text, 512 prompt tokens stored against new",
        facts={"cached_tokens": cached},
    )


def body(config: BenchmarkConfig, index: int) -> dict[str, Any]:
    """A request: prompts of 32 to 88 tokens, answers of 32 to 60 (quick: a quarter of that)."""
    num_new = (32 + 4 * (index % 8)) // (4 if config.quick else 1)
    return {
        "model": "bench",
        "prompt": make_prompt(32 + 8 * (index % 8), config.seed + 10_000 + index),
        "max_tokens": num_new,
        "ignore_eos": True,
        "diffusion": {"rule": "steps"},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def load(
    url: str, bodies: Sequence[dict[str, Any]], *, num_clients: int = 1_000, is_queue: bool = False
) -> list[Answer]:
    """The answers to requests of which at most `num_clients` are at the server.

    Args:
        url: of the server.
        bodies: the requests.
        num_clients: as many as there are requests, if less are.
        is_queue: all ask at once and wait for a place (a lock); else a request is asked for when
            its client is free.
    """
    places = asyncio.Semaphore(num_clients)
    limits = httpx.Limits(max_connections=None)
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def ask(body: dict[str, Any]) -> Answer:
            async with places:
                answer = await _ask(client, body)
            return replace(answer, asked=started) if is_queue else answer

        return await asyncio.gather(*(ask(each) for each in bodies))


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    asked, arrived = time.perf_counter(), []
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if any(choice["text"] for choice in chunk["choices"]):
                arrived.append(time.perf_counter())
            usage = chunk.get("usage") or usage
    details = usage["prompt_tokens_details"]
    return Answer(asked, arrived, usage["completion_tokens"], details["cached_tokens"])


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Tokens, tokens per second, and quantiles of waiting in seconds."""
    start = min(answer.asked for answer in answers)
    end = max(answer.arrived[-1] for answer in answers)
    first = [answer.first_s for answer in answers]
    gaps = [b - a for x in answers for a, b in zip(x.arrived, x.arrived[1:], strict=False)]
    tokens = sum(answer.num_tokens for answer in answers)
    quantiles = {f"first_p{p}_s": quantile(first, p) for p in (50, 95, 99)}
    quantiles |= {f"gap_p{p}_s": quantile(gaps, p) for p in (50, 95, 99)}
    return {"tokens": tokens, "tokens_per_s": tokens / (end - start), **quantiles}


def quantile(values: Sequence[float], percent: int) -> float:
    """The smallest value that `percent` % do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def medians(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the repeats."""
    return {key: round(statistics.median(f[key] for f in figures), 4) for key in figures[0]}


@contextmanager
def listening(config: BenchmarkConfig) -> Iterator[str]:
    """The application on a free port of this machine inside a ``with`` block; yields its URL."""
    import uvicorn

    server = ModelServer(_language_model(config), engine=EngineSection(kv_tokens=16_384))
    app = create_app({"bench": server})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        options = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        http = uvicorn.Server(options)
        thread = threading.Thread(target=http.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            http.should_exit = True
            thread.join(10)
            server.close()


def _language_model(config: BenchmarkConfig) -> LanguageModel:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(SHAPE["vocab_size"])}, "w0"))
    words.decoder = decoders.Fuse()
    contract = Contract(objective="bd3lm", mask_token_id=MASK_ID, block_size=_BLOCK_SIZE)
    return LanguageModel(
        make_model("llama", torch.bfloat16, config.seed),
        PreTrainedTokenizerFast(tokenizer_object=words),
        contract,
    )
