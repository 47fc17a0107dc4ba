"""Cases of suite ``serving`` under Ray Serve: the model in replicas, the clients here."""

import asyncio
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from a2d_ray.cli import validate
from a2d_ray.config import BenchmarkConfig, ServeConfig
from a2d_ray.serving.ray.launch import running_server
from benchmarks.harness import Case
from benchmarks.http_load import Answer, ask_streamed, load, quantile
from benchmarks.models import make_language_model, make_prompt, save_language_model

_BLOCK_SIZE = 8
_RUNNING = _QUEUED = 4


@contextmanager
def serving_on_ray(config: BenchmarkConfig, **values: Any) -> Iterator[str]:
    """The model under Ray Serve inside a ``with`` block; yields the URL of its server.

    Args:
        config: the seed of its weights, and the threads of a replica.
        values: keys of a `ServeConfig`.
    """
    with tempfile.TemporaryDirectory() as directory:
        lm = make_language_model(torch.bfloat16, config.seed, _BLOCK_SIZE)
        path = save_language_model(lm, Path(directory))
        load = {"path": str(path), "device": "cpu", "dtype": "bfloat16"}
        values = {"models": [{"id": "bench", "load": load}], "port": _free_port()} | values
        with running_server(validate(ServeConfig, values)) as url:
            yield url.removesuffix("/v1")


def overload(config: BenchmarkConfig) -> Case:
    """Seconds to a 429 while ten times as many clients ask as there is room for.

    A replica with four places and a queue of four gets 80 clients at once; answers are streamed.
    Who is refused asks again after about the seconds that Retry-After names. The baseline is a
    request that needs no model (``GET /v1/models``) amid the same load: what HTTP and Ray Serve
    take by themselves.
    """
    capacity = _RUNNING + _QUEUED
    seconds = 6.0 if config.quick else 15.0
    limits = {"max_ongoing_requests": _RUNNING, "max_queued_requests": _QUEUED}
    with serving_on_ray(config, **limits) as url:
        calm = asyncio.run(_Flood(url, config).run(capacity, seconds))
        flood = asyncio.run(_Flood(url, config).run(10 * capacity, seconds))
    return Case(
        name="overload",
        ours=statistics.median(flood.refused_s),
        baseline=statistics.median(flood.other_s),
        unit="median seconds to a 429, 10x the clients there is room for, against GET /v1/models",
        facts={
            "clients": 10 * capacity,
            "refused": len(flood.refused_s),
            "refused_p95_s": round(quantile(flood.refused_s, 95), 4),
            "first_wave_median_s": round(statistics.median(flood.first_wave_s), 4),
            "answered": len(flood.answered_s),
            "answered_median_s": round(statistics.median(flood.answered_s), 3),
            "answered_max_s": round(max(flood.answered_s), 3),
            "answered_median_s_without_overload": round(statistics.median(calm.answered_s), 3),
            "answered_max_s_without_overload": round(max(calm.answered_s), 3),
            "gap_p95_s": round(quantile(flood.gaps_s, 95), 3),
            "gap_p95_s_without_overload": round(quantile(calm.gaps_s, 95), 3),
            "recovery_s": round(flood.recovery_s, 3),
        },
    )


def routing(config: BenchmarkConfig) -> Case:
    """Second turns over two replicas: routed by how the prompt begins, against Serve's default.

    The default takes the less busy of two replicas that it draws. Every conversation has a first
    turn of 512 tokens and a second one of 16 more; two clients ask at a time.
    """
    first, second = _two_turns(6 if config.quick else 16, config.seed)
    found: dict[bool, list[Answer]] = {}
    for is_prefix_aware in (True, False):
        with serving_on_ray(config, num_replicas=2, is_prefix_aware=is_prefix_aware) as url:
            asyncio.run(load(url, _two_turns(4, config.seed + 500)[0]))  # warm-up of both
            asyncio.run(load(url, first, num_clients=2))
            found[is_prefix_aware] = asyncio.run(load(url, second, num_clients=2))
    ours, default = ([answer.first_s for answer in found[aware]] for aware in (True, False))
    return Case(
        name="routing",
        ours=statistics.median(ours),
        baseline=statistics.median(default),
        unit="median seconds to the first text of second turns, 2 replicas",
        facts={
            "conversations": len(second),
            "stored_share": round(_stored_share(found[True]), 3),
            "stored_share_default": round(_stored_share(found[False]), 3),
            "p95_s": round(quantile(ours, 95), 3),
            "p95_s_default": round(quantile(default, 95), 3),
        },
    )


def _two_turns(num_conversations: int, seed: int) -> tuple[list[dict[str, Any]], ...]:
    """Requests of all first turns, and of all second ones."""
    body = {"model": "bench", "max_tokens": _BLOCK_SIZE, "ignore_eos": True, "stream": True}
    body |= {"diffusion": {"rule": "steps"}, "stream_options": {"include_usage": True}}
    prompts = [make_prompt(512, seed + 1_000 + i) for i in range(num_conversations)]
    longer = [p + make_prompt(16, seed + 2_000 + i) for i, p in enumerate(prompts)]
    return [body | {"prompt": p} for p in prompts], [body | {"prompt": p} for p in longer]


def _stored_share(answers: Sequence[Answer]) -> float:
    """Share of the answers whose first turn was found stored."""
    return sum(answer.num_cached >= 512 for answer in answers) / len(answers)


class _Flood:
    """Clients that ask again and again, and what they waited for, in seconds.

    Attributes:
        refused_s: times to a 429; `first_wave_s`: those of the first requests.
        answered_s: times of whole answers; `gaps_s`: between two chunks of one answer.
        other_s: times of requests that need no model.
        recovery_s: until a request succeeded after the clients had gone.
    """

    def __init__(self, url: str, config: BenchmarkConfig) -> None:
        self._url = url
        self._body = {
            "model": "bench",
            "prompt": make_prompt(32, config.seed),
            "max_tokens": 3 * _BLOCK_SIZE,
            "ignore_eos": True,
            "diffusion": {"rule": "steps"},
        }
        self._streamed = self._body | {"stream": True, "stream_options": {"include_usage": True}}
        self.refused_s: list[float] = []
        self.first_wave_s: list[float] = []
        self.answered_s: list[float] = []
        self.gaps_s: list[float] = []
        self.other_s: list[float] = []
        self.recovery_s = 0.0

    async def run(self, num_clients: int, seconds: float) -> "_Flood":
        """Lets so many clients ask for so long, then goes on until a request succeeds."""
        async with AsyncExitStack() as stack:
            # One pool of so many connections would take longer than the server does.
            connections = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=self._url, timeout=120, verify=False)
                )
                for _ in range(num_clients + 1)
            ]
            for http in connections:
                (await http.get("/v1/models")).raise_for_status()  # connect
            *others, last = connections
            (await last.post("/v1/completions", json=self._body)).raise_for_status()  # warm-up
            clients = [self._client(http, i) for i, http in enumerate(others)]
            tasks = [asyncio.create_task(each) for each in (*clients, self._bystander(last))]
            done, _ = await asyncio.wait(tasks, timeout=seconds)
            for task in done:
                task.result()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        left = time.perf_counter()
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as http:
            while (await http.post("/v1/completions", json=self._body)).status_code == 429:
                await asyncio.sleep(0.05)
        self.recovery_s = time.perf_counter() - left
        return self

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(number)
        is_first = True
        while True:
            asked = time.perf_counter()
            try:
                answer = await ask_streamed(http, self._streamed)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 429:
                    raise
                self.refused_s.append(time.perf_counter() - asked)
                if is_first:
                    self.first_wave_s.append(self.refused_s[-1])
                retry_s = float(error.response.headers["retry-after"])
                await asyncio.sleep(retry_s * (0.5 + rng.random()))
            else:
                self.answered_s.append(time.perf_counter() - asked)
                self.gaps_s += answer.gaps_s
            is_first = False

    async def _bystander(self, http: httpx.AsyncClient) -> None:
        while True:
            asked = time.perf_counter()
            (await http.get("/v1/models")).raise_for_status()
            self.other_s.append(time.perf_counter() - asked)
            await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
