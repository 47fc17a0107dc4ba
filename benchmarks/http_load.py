"""Clients over a socket and what they waited for; a server for them in a thread."""

import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import httpx


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

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between its chunks."""
        return [b - a for a, b in pairwise(self.arrived)]


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
                answer = await ask_streamed(client, body)
            return replace(answer, asked=started) if is_queue else answer

        return await asyncio.gather(*(ask(each) for each in bodies))


async def ask_streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """The answer to one request, whose body asks for a stream with usage.

    Raises:
        httpx.HTTPStatusError: it was refused.
    """
    asked = time.perf_counter()
    arrived = []
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.is_error:
            await response.aread()  # or its connection could not be used again
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
    gaps = [gap for answer in answers for gap in answer.gaps_s]
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
def listening(app: Any) -> Iterator[str]:
    """Serves an ASGI application on a free port of this machine inside a ``with`` block.

    Yields its URL.
    """
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
