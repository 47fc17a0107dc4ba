"""Two replicas under Ray Serve: one is killed under load; conversations; metrics of both."""

import asyncio
import os
import signal
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from a2d_ray.serving.launch import running_server
from tests.serving.test_serve import make_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LONG = {"max_tokens": 300, "ignore_eos": True, "diffusion": {"rule": "steps"}}


@pytest.fixture(scope="module")
def base_url(ray_local, checkpoint):
    load = {"path": str(checkpoint), "dtype": "float32", "device": "cpu"}
    models = [{"id": "tiny", "load": load | {"objective": "bd3lm", "block_size": 4}}]
    security = {"api_keys_env": "A2D_TEST_KEYS"}
    os.environ["A2D_TEST_KEYS"] = "key-of-a-test"
    try:
        config = make_config(
            checkpoint, models=models, num_replicas=2, cpus_per_replica=0.5, security=security
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


def test_a_killed_replica_loses_no_request_that_was_not_streamed_yet(http, base_url):
    """kill -9 under load: what is not streamed is tried again; a stream ends, or has an error."""
    body = {"model": "tiny", **LONG}
    wanted = {
        i: http.post("/v1/completions", json=body | {"prompt": f"p{i}"}).json()["choices"]
        for i in range(8)
    }
    hole = {"model": "tiny", "max_tokens": 300, "diffusion": LONG["diffusion"]}
    filled = http.post("/v1/infill", json=hole | {"prefix": "p"}).json()["text"]
    before = replica_pids()
    assert len(before) == 2

    async def main():
        headers = {"Authorization": "Bearer key-of-a-test"}
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=120) as client:
            url = "/completions"
            whole = [client.post(url, json=body | {"prompt": f"p{i}"}) for i in range(8)]
            streams = [
                client.post(url, json=body | {"prompt": f"p{i}", "stream": True}) for i in range(8)
            ]
            fills = [client.post("/infill", json=hole | {"prefix": "p"}) for _ in range(4)]
            tasks = [asyncio.ensure_future(each) for each in (*whole, *streams, *fills)]
            await asyncio.sleep(0.4)
            os.kill(before[0], signal.SIGKILL)
            answers = await asyncio.gather(*tasks)
            return answers[:8], answers[8:16], answers[16:]

    whole, streams, fills = asyncio.run(main())
    assert [answer.json().get("text") for answer in fills] == [filled] * 4
    assert [answer.status_code for answer in whole] == [200] * 8
    for i, answer in enumerate(whole):
        assert answer.json()["choices"] == wanted[i]
    endings = [answer.text.strip().split("\n\n")[-1] for answer in streams]
    assert all("[DONE]" in e or '"code": "replica_failed"' in e for e in endings)
    assert any("[DONE]" in e for e in endings)
    assert http.get("/health").status_code == 200
    deadline = time.monotonic() + 90
    while len(replica_pids()) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    after = replica_pids()
    assert len(after) == 2
    assert before[0] not in after
