"""Over a real socket: clients that hang up, and long runs, leave nothing behind."""

import asyncio
import gc
import json
import random
import resource
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from a2d_ray.config import EngineSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening

TEXT = "/v1/completions"
LONG = {"model": "tiny", "max_tokens": 400, "ignore_eos": True, "diffusion": {"rule": "steps"}}


def rss_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def num_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.fixture
def served(lm):
    """A server with a small KV store, which is full early on, and its URL."""
    server = ModelServer(lm, engine=EngineSection(kv_tokens=4_096))
    with listening(create_app({"tiny": server})) as url:
        httpx.post(url + TEXT, json=LONG | {"prompt": "a", "max_tokens": 4}, timeout=60)
        yield server, url  # what a client and a server make once is there
    server.close()


async def leave_in_mid_stream(url: str, body: dict) -> bytes:
    """Reads the first event of a stream, then resets the connection; returns what was read."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    content = json.dumps(body | {"stream": True}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: tiny\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    seen = await reader.readuntil(b"data: ")
    writer.transport.abort()
    return seen


@pytest.mark.slow
@pytest.mark.nightly
def test_five_hundred_clients_that_hang_up_leave_nothing(served):
    """500 streams over sockets, 50 at a time, each left after its first event."""
    server, url = served
    engine = server._engine._engine

    async def main() -> None:
        for start in range(0, 500, 50):
            bodies = [LONG | {"prompt": f"leaver {start + i}"} for i in range(50)]
            seen = await asyncio.gather(*(leave_in_mid_stream(url, body) for body in bodies))
            assert all(head.startswith(b"HTTP/1.1 200") for head in seen)
            if start == 50:  # the first ones make what is made once
                before.append(num_objects())

    before: list[int] = []
    num_rounds = engine.num_rounds
    asyncio.run(main())
    deadline = time.monotonic() + 60
    while engine.has_unfinished() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.has_unfinished()
    assert engine.num_used_kv_tokens == 0
    assert not server._engine._listeners
    assert engine.num_rounds - num_rounds < 10 * 400  # nobody was answered to the end
    answer = httpx.post(url + TEXT, json=LONG | {"prompt": "stays", "max_tokens": 8}, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 8
    # Not resident memory: oneDNN keeps kernels for every new number of tokens in a round.
    assert num_objects() - before[0] < 500


@pytest.mark.slow
@pytest.mark.nightly
def test_memory_is_flat_over_a_thousand_requests(served):
    """Whole and streamed answers, errors, log-probabilities: 6 KB each would be seen.

    One after the other: oneDNN keeps kernels for every new number of tokens in a round.
    """
    _, url = served
    rng = random.Random(0)

    def body(number: int) -> dict:
        text = "".join(rng.choices("abcdefgh ", k=20))
        body = {"model": "tiny", "prompt": text, "max_tokens": 4, "stream": number % 2 == 0}
        if number % 5 == 0:
            body |= {"logprobs": 2, "temperature": 1.0, "seed": number}
        return body | ({"no_such_field": 1} if number % 7 == 0 else {})

    def ask(num_requests: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            for number in range(num_requests):
                answer = http.post(TEXT, json=body(number))
                assert answer.status_code == (400 if number % 7 == 0 else 200)

    ask(300)
    before = rss_mb()
    ask(1_000)
    assert rss_mb() - before < 6
