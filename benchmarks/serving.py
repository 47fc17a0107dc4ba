"""Suite ``serving``: the HTTP application over a real socket.

A model of 135 M parameters with random weights in bfloat16, block 8, one token per forward,
streamed answers of mixed lengths. ``clients8``, ``lock8`` and ``turns`` have client and server in
this process, so its CPU seconds hold both; ``overload`` and ``routing`` are under Ray Serve.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from a2d_ray.config import BenchmarkConfig, EngineSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.harness import Case
from benchmarks.http_load import listening, load, medians, summary
from benchmarks.models import make_language_model, make_prompt
from benchmarks.ray_serving import overload, routing

_BLOCK_SIZE = 8


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """The cases that the configuration names; all of them if it names none.

    Raises:
        ValueError: an unknown case.
    """
    torch.set_num_threads(config.threads)
    here: dict[str, Callable[[str, BenchmarkConfig], Case]] = {
        "clients8": clients8,
        "lock8": lock8,
        "turns": turns,
    }
    on_ray: dict[str, Callable[[BenchmarkConfig], Case]] = {
        "overload": overload,
        "routing": routing,
    }
    wanted = config.cases or [*here, *on_ray]
    unknown = set(wanted) - set(here) - set(on_ray)
    if unknown:
        raise ValueError(f"cases: {sorted(unknown)} unknown, choose from {sorted(here | on_ray)}")
    if here.keys() & set(wanted):
        with serving(config) as url:
            for name in [name for name in wanted if name in here]:
                yield here[name](url, config)
    for name in [name for name in wanted if name in on_ray]:
        yield on_ray[name](config)


@contextmanager
def serving(config: BenchmarkConfig) -> Iterator[str]:
    """The model in this process inside a ``with`` block, warmed up; yields its URL."""
    lm = make_language_model(torch.bfloat16, config.seed, _BLOCK_SIZE)
    server = ModelServer(lm, engine=EngineSection(kv_tokens=16_384))
    try:
        with listening(create_app({"bench": server})) as url:
            asyncio.run(load(url, [body(config, 0)]))
            yield url
    finally:
        server.close()


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
    ours = []
    locked = []
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
    new_s = []
    stored_s = []
    cached = []
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
