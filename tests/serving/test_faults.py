"""Two replicas under Ray Serve: one dies, raises or hangs under load; conversations; metrics."""

import asyncio
import os
import signal
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from a2d_ray.serving.ray.launch import running_server
from tests.serving.in_replica import break_engine, in_replicas, mend_generate, spoil_generate
from tests.serving.test_serve import make_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LONG = {"max_tokens": 300, "ignore_eos": True, "diffusion": {"rule": "steps"}}
ROUND_TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def base_url(ray_local, checkpoint):
    load = {"path": str(checkpoint), "dtype": "float32", "device": "cpu"}
    models = [{"id": "tiny", "load": load | {"objective": "bd3lm", "block_size": 4}}]
    security = {"api_keys_env": "A2D_TEST_KEYS"}
    os.environ["A2D_TEST_KEYS"] = "key-of-a-test"
    try:
        config = make_config(
            checkpoint,
            models=models,
            num_replicas=2,
            cpus_per_replica=0.5,
            security=security,
            round_timeout_s=ROUND_TIMEOUT_S,
        )
        with running_server(config) as url:
            yield url
    finally:
        del os.environ["A2D_TEST_KEYS"]


@pytest.fixture
def http(base_url):
    headers = {"Authorization": "Bearer key-of-a-test"}
    root = base_url.removesuffix("/v1")
    with httpx.Client(base_url=root, headers=headers, timeout=120) as client:
        yield client


def replica_pids() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline") as file:
                    title = file.read()
            except OSError:
                continue
            if title.startswith("ray::ServeReplica:a2d-ray:model-0-tiny"):
                found.append(int(name))
    return found


def test_a_conversation_stays_on_the_replica_that_has_it_cached(http):
    """Second turns find the first turn's prompt stored, whichever of the replicas had it."""
    for conversation in range(6):
        text = f"conversation {conversation}: tell me a long story"
        messages = [{"role": "user", "content": text}]
        body = {"model": "tiny", "max_tokens": 8, "messages": messages}
        first = http.post("/v1/chat/completions", json=body).json()
        answer = first["choices"][0]["message"]["content"]
        turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": "go on"}]
        body["messages"] = messages + turns
        second = http.post("/v1/chat/completions", json=body).json()
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > len(text)


def num_tokens(http) -> dict[str, float]:
    """Tokens that each replica generated."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    return {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "a2d:generation_tokens_total"
    }


def test_both_replicas_worked_and_their_metrics_are_on_one_page(http):
    tokens = num_tokens(http)
    assert len(tokens) == 2
    assert min(tokens.values()) > 0


def test_what_many_prompts_share_keeps_both_replicas_busy(http, base_url):
    """Sixteen at a time: no replica gets more than about its share; one at a time: one gets all."""
    shared = {"model": "tiny", "prompt_cache_key": "shots", **LONG}
    bodies = [shared | {"prompt": f"p{i}"} for i in range(16)]

    async def together():
        headers = {"Authorization": "Bearer key-of-a-test"}
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120) as client:
            posts = (client.post("/completions", json=body) for body in bodies)
            return await asyncio.gather(*posts)

    def share(ask) -> float:
        before = num_tokens(http)
        assert {answer.status_code for answer in ask()} == {200}
        grown = [value - before[replica] for replica, value in num_tokens(http).items()]
        return max(grown) / sum(grown)

    assert share(lambda: [http.post("/v1/completions", json=body) for body in bodies[:4]]) == 1
    assert share(lambda: asyncio.run(together())) <= 13 / 16


def test_the_request_id_comes_back_once(http):
    answer = http.get("/v1/models", headers={"x-request-id": "abc-7"})
    assert answer.headers.get_list("x-request-id") == ["abc-7"]
    assert http.get("/v1/models", headers={"Authorization": "Bearer no"}).status_code == 401


def num_running() -> int:
    """Replicas that answer: their processes are there, and Serve has seen them ready."""
    deployment = serve.status().applications["a2d-ray"].deployments["model-0-tiny"]
    return min(deployment.replica_states.get("RUNNING", 0), len(replica_pids()))


def replicas_are_two() -> bool:
    """Waits until Serve has replaced what is missing."""
    deadline = time.monotonic() + 180
    while num_running() < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    return num_running() == 2


async def read_stream(client: httpx.AsyncClient, body: dict, begun: asyncio.Event) -> str:
    """All events of a stream; tells when the first one is there."""
    text = ""
    async with client.stream("POST", "/completions", json=body | {"stream": True}) as response:
        async for part in response.aiter_text():
            text += part
            begun.set()
    return text


def ask_while(base_url: str, body: dict, fault) -> tuple[list[httpx.Response], list[str]]:
    """Answers to 8 requests, and 8 streams that had all begun when the fault happened."""

    async def main():
        headers = {"Authorization": "Bearer key-of-a-test"}
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120) as client:
            bodies = [body | {"prompt": f"p{i}"} for i in range(8)]
            begun = [asyncio.Event() for _ in bodies]
            whole = asyncio.gather(*(client.post("/completions", json=b) for b in bodies))
            streams = asyncio.gather(
                *(read_stream(client, b, event) for b, event in zip(bodies, begun, strict=True))
            )
            await asyncio.gather(*(event.wait() for event in begun))
            fault()
            return await whole, await streams

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["killed", "raising", "hanging"])
def test_a_lost_replica_loses_no_request_that_was_not_streamed_yet(http, base_url, kind):
    """Under load: whole answers are tried again; a stream ends whole or with an error.

    An engine that raises or hangs takes its process with it: whoever comes next finds a replica
    that works, or waits for one.
    """
    assert replicas_are_two()
    body = {"model": "tiny", **LONG}
    wanted = {
        i: http.post("/v1/completions", json=body | {"prompt": f"p{i}"}).json()["choices"]
        for i in range(8)
    }
    victim = replica_pids()[0]

    def fault():
        if kind == "killed":
            os.kill(victim, signal.SIGKILL)
        else:
            in_replicas(break_engine, victim, kind == "hanging")

    started = time.monotonic()
    whole, streams = ask_while(base_url, body, fault)
    assert [answer.status_code for answer in whole] == [200] * 8
    for i, answer in enumerate(whole):
        assert answer.json()["choices"] == wanted[i]
    endings = [text.strip().split("\n\n")[-1] for text in streams]
    assert all("[DONE]" in e or '"code": "replica_failed"' in e for e in endings)
    assert any("[DONE]" in e for e in endings)
    assert any("replica_failed" in e for e in endings)
    assert victim not in replica_pids()
    if kind == "hanging":
        assert ROUND_TIMEOUT_S < time.monotonic() - started < ROUND_TIMEOUT_S + 120
    assert http.get("/health").status_code == 200
    assert replicas_are_two()


def test_what_a_replica_raises_is_a_500_and_not_tried_again(http):
    """Another replica would raise it, too: it is no lost replica."""
    assert replicas_are_two()
    in_replicas(spoil_generate)
    try:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 4}
        answers = [http.post("/v1/completions", json=body | {"stream": s}) for s in (False, True)]
    finally:
        num_calls = sum(in_replicas(mend_generate))
    assert [answer.status_code for answer in answers] == [500, 500]
    assert {answer.json()["error"]["code"] for answer in answers} == {"internal"}
    assert num_calls == 2
