"""Real Ray Serve on a free port, spoken to by OpenAI's own client."""

import asyncio
import json
import logging
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from ray.serve._private.logging_utils import get_serve_logs_dir

import a2d_ray
from a2d_ray import SamplingParams
from a2d_ray.cli import validate
from a2d_ray.config import ServeConfig
from a2d_ray.models.fingerprint import values_hash
from a2d_ray.runs.resources import Resources
from a2d_ray.serving.ray import launch
from a2d_ray.serving.ray.launch import (
    check_before_start,
    check_replicas,
    running_server,
    wait_for_interrupt,
)

MESSAGES = [{"role": "user", "content": "2+2?"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_config(checkpoint, **values) -> ServeConfig:
    load = {"path": str(checkpoint), "dtype": "float32", "device": "cpu"}
    load |= {"objective": "bd3lm", "block_size": 4}
    models = [{"id": name, "load": load} for name in ("tiny", "org/tiny")]
    return validate(ServeConfig, {"models": models, "port": free_port()} | values)


@pytest.fixture(scope="module")
def base_url(ray_local, checkpoint):
    """Two models behind one endpoint, with room for two requests each."""
    config = make_config(
        checkpoint, cpus_per_replica=0.5, max_ongoing_requests=2, max_queued_requests=2
    )
    with running_server(config) as url:
        yield url


@pytest.fixture
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.cluster
def test_chat_streaming_and_completions_agree_with_the_python_api(client, lm):
    (wanted,) = lm.generate([MESSAGES], SamplingParams(max_new_tokens=20))
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20)
    assert whole.choices[0].message.content == wanted.text
    assert whole.usage.diffusion["forwards"] == wanted.num_forwards
    stream = client.chat.completions.create(
        model="org/tiny",
        messages=MESSAGES,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == wanted.text
    assert chunks[-1].usage == whole.usage  # each model has a cache of its own
    answer = client.completions.create(
        model="tiny",
        prompt=["ab", ""],
        max_tokens=8,
        extra_body={"diffusion": {"rule": "steps", "steps": 4}},
    )
    params = SamplingParams(max_new_tokens=8, rule="steps", steps=4)
    assert [c.text for c in answer.choices] == [g.text for g in lm.generate(["ab", ""], params)]


@pytest.mark.cluster
def test_a_card_tells_the_model_that_a_replica_has_read(client, lm):
    until = time.monotonic() + 90
    while (found := client.models.retrieve("tiny").diffusion["fingerprint"]) is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert found == values_hash(lm.fingerprint())


@pytest.mark.cluster
def test_models_health_and_errors(client, base_url):
    assert [model.id for model in client.models.list()] == ["tiny", "org/tiny"]
    card = client.models.retrieve("org/tiny")
    assert (card.id, card.max_model_len) == ("org/tiny", 512)
    assert (card.diffusion["objective"], card.diffusion["block_size"]) == ("bd3lm", 4)
    assert httpx.get(base_url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=0)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="tiny", prompt="x" * 600, stream=True)
    assert too_long.value.code == "context_length_exceeded"


@pytest.mark.cluster
def test_client_and_log_know_a_request_by_one_plain_id(base_url):
    """Whatever the client sends, and though Serve's proxy stands before the application."""
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    ids = []
    for sent in ({}, "x" * 200, "a b=status=500", "mine", trace, trace | {"x-request-id": "mine"}):
        headers = sent if isinstance(sent, dict) else {"x-request-id": sent}
        answer = httpx.get(f"{base_url}/models", headers=headers)
        ids += answer.headers.get_list("x-request-id")
    assert all(re.fullmatch(r"[\w.:-]{1,128}", each) for each in ids)
    assert len(ids) == 6 and ids[3:] == ["mine", "ab" * 16, "ab" * 16]
    logged = "".join(file.read_text() for file in Path(get_serve_logs_dir()).glob("*_ingress_*"))
    for each in ids:
        assert f"request_id={each} method=GET path=/v1/models status=200" in logged
    ours = [line for line in logged.splitlines() if "path=/v1/models" in line]  # of all tests
    assert not any("status=500" in line for line in ours)


@pytest.mark.cluster
def test_a_model_asleep_is_well_and_one_that_cannot_start_is_not(base_url, checkpoint):
    from ray import serve
    from ray.serve.api import RunTarget

    from a2d_ray.serving import build_openai_app

    root = base_url.removesuffix("/v1")
    configs = {
        "asleep": make_config(checkpoint, autoscaling={"min_replicas": 0}, drain_timeout_s=0),
        "stuck": make_config(checkpoint, gpus_per_replica=64, drain_timeout_s=0),
    }
    targets = [
        RunTarget(build_openai_app(config), name=name, route_prefix=f"/{name}")
        for name, config in configs.items()
    ]
    try:
        serve.run_many(targets, wait_for_applications_running=False)
        found = {name: wait_for_answer(f"{root}/{name}/health") for name in configs}
    finally:
        for name in configs:
            serve.delete(name)
    assert found["asleep"].status_code == 200
    assert found["stuck"].status_code == 503
    assert not re.search("model-|tiny|GPU|resource", found["stuck"].text)


def wait_for_answer(url, timeout_s=60) -> httpx.Response:
    """From the application, which is deployed a moment after it was asked for."""
    deadline = time.monotonic() + timeout_s
    while (answer := httpx.get(url, timeout=60)).status_code == 404:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    return answer


@pytest.mark.cluster
def test_overload_is_a_429_and_passes(client, base_url):
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 200, "ignore_eos": True}
    body["diffusion"] = {"rule": "steps"}

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as http:
            posts = [http.post(f"{base_url}/completions", json=body) for _ in range(24)]
            return await asyncio.gather(*posts)

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    assert {answer.status_code for answer in refused} == {429}
    assert 1 <= int(refused[0].headers["retry-after"]) <= 60
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    assert client.completions.create(model="tiny", prompt="ab", max_tokens=4).choices


@pytest.mark.cluster
def test_waiting_for_a_replica_is_part_of_the_metrics(base_url):
    """Six long requests, room for two: the times are by and large those that the clients saw.

    Without the waits they would be half of it.
    """
    url = base_url.removesuffix("/v1")
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 200, "ignore_eos": True, "n": 4}
    body["diffusion"] = {"rule": "steps"}
    name = 'a2d:{}{{model_name="tiny"'.format
    held = "num_requests_at_endpoint"

    def value(page: str, metric: str) -> float:
        return sum(float(line.split()[-1]) for line in page.splitlines() if name(metric) in line)

    async def main() -> tuple[str, float, float, str]:
        async with httpx.AsyncClient(timeout=60) as http:

            async def ask() -> float:
                while True:
                    started = time.monotonic()
                    answer = await http.post(f"{base_url}/completions", json=body)
                    if answer.status_code == 200:
                        return time.monotonic() - started
                    assert answer.status_code == 429, answer.text
                    await asyncio.sleep(0.1)

            before = (await http.get(f"{url}/metrics")).text
            tasks, most = [], 0.0
            for _ in range(6):
                tasks.append(asyncio.create_task(ask()))
                await asyncio.sleep(0.1)  # Serve's router counts who is on its way as queued
            while not all(task.done() for task in tasks):
                most = max(most, value((await http.get(f"{url}/metrics")).text, held))
            after = (await http.get(f"{url}/metrics")).text
            return before, most, sum([task.result() for task in tasks]), after

    before, most, seen_s, after = asyncio.run(main())
    metric = "e2e_request_latency_seconds_sum"
    each_s = (value(after, metric) - value(before, metric)) / body["n"]
    assert 0.7 * seen_s < each_s < seen_s
    assert most > 2 and value(after, held) == 0


@pytest.mark.cluster
def test_clients_that_leave_make_room(client, base_url):
    """Two requests fill the replica: if leavers kept their places, the third would wait until one
    of them has had all of its 500 forwards."""
    options = {"model": "tiny", "prompt": "ab", "max_tokens": 500}
    options["extra_body"] = {"ignore_eos": True, "diffusion": {"rule": "steps"}}

    def num_rounds() -> float:
        page = httpx.get(f"{base_url.removesuffix('/v1')}/metrics").text
        own = [x for x in page.splitlines() if x.startswith('a2d:engine_rounds{model_name="tiny"')]
        return sum(float(line.split()[-1]) for line in own)

    before = num_rounds()
    for _ in range(6):
        stream = client.completions.create(stream=True, **options)
        next(iter(stream))
        stream.close()
    assert 0 < num_rounds() - before < 500


def test_the_ingress_needs_no_torch():
    code = "import sys, a2d_ray.serving.ray.deployment; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_the_package_needs_no_ray():
    code = "import sys, a2d_ray.serving; assert not {'ray', 'fastapi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_busy_port_and_a_missing_model_fail_before_ray_starts(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = make_config(checkpoint, port=taken.getsockname()[1])
        with pytest.raises(ValueError, match=f"{config.port}.*port="):
            check_before_start(config)
    models = [{"id": "m", "load": {"path": str(checkpoint / "nothing")}}]
    with pytest.raises(ValueError, match="nothing"):
        check_before_start(make_config(checkpoint, models=models))


def test_a_model_that_can_do_nothing_is_refused_before_ray_starts(checkpoint, tmp_path):
    """Converted but not trained it still has the AR mode, unless its weights are random."""
    models = [{"id": "m", "load": {"path": str(checkpoint)}}]
    check_before_start(make_config(checkpoint, models=models))
    random = tmp_path / "random"
    a2d_ray.convert(str(checkpoint.parent / "ar"), random, random_init=True)
    models = [{"id": "m", "load": {"path": str(random)}}]
    with pytest.raises(ValueError, match="not trained"):
        check_before_start(make_config(checkpoint, models=models))


def test_more_cpus_than_there_are_is_an_error_that_says_how_many(checkpoint):
    with pytest.raises(ValueError, match=r"num_replicas=9 asks for 18 CPUs .*but Ray has 8"):
        check_replicas(make_config(checkpoint, num_replicas=9), Resources(8, 0, is_ray=True))


def test_without_a_quickstart_a_converted_model_is_served_and_said_so(
    checkpoint, tmp_path, monkeypatch
):
    """Other paths that are missing stay errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_FALLBACK_OUTPUT", str(checkpoint))
    said: list[str] = []
    config = make_config(
        checkpoint, models=[{"id": "a2d", "load": {"path": launch.QUICKSTART_CHECKPOINT}}]
    )
    (model,) = launch.with_fallback(config, said.append).models
    assert (model.load.path, model.load.objective) == (str(checkpoint), None)
    assert "not trained" in said[0] and launch.QUICKSTART_CHECKPOINT in said[0]
    other = make_config(checkpoint, models=[{"id": "a2d", "load": {"path": "nothing"}}])
    assert launch.with_fallback(other, said.append) == other


def test_an_application_without_keys_says_so(checkpoint, monkeypatch, caplog):
    """Also where the address is Serve's to choose; required, they are not to be missing."""
    from a2d_ray.serving import build_openai_app

    logging.getLogger("ray.serve").addHandler(caplog.handler)
    monkeypatch.setenv("A2D_API_KEYS", "key")
    build_openai_app(make_config(checkpoint))
    assert caplog.messages == []
    monkeypatch.delenv("A2D_API_KEYS")
    build_openai_app(make_config(checkpoint))
    (warning,) = caplog.messages
    assert "everybody" in warning and "A2D_API_KEYS" in warning
    logging.getLogger("ray.serve").removeHandler(caplog.handler)
    required = make_config(checkpoint, security={"require_keys": True})
    for build in (build_openai_app, check_before_start):
        with pytest.raises(ValueError, match=r"require_keys.*A2D_API_KEYS"):
            build(required)


def test_the_command_to_try_names_a_key_where_one_is_needed(checkpoint, monkeypatch):
    config = make_config(checkpoint)
    monkeypatch.delenv("A2D_API_KEYS", raising=False)
    assert "Authorization" not in launch.curl_line("http://x/v1", config)
    monkeypatch.setenv("A2D_API_KEYS", "a-secret")
    words = shlex.split(launch.curl_line("http://x/v1", config))
    assert "Authorization: Bearer KEY" in words and words[1] == "http://x/v1/chat/completions"
    assert json.loads(words[-1])["model"] == "tiny"


def test_an_open_address_without_keys_is_warned_of(checkpoint, monkeypatch):
    monkeypatch.delenv("A2D_API_KEYS", raising=False)
    assert launch.exposure_warning(make_config(checkpoint)) is None
    open_config = make_config(checkpoint, host="0.0.0.0")
    assert "A2D_API_KEYS" in (launch.exposure_warning(open_config) or "")
    monkeypatch.setenv("A2D_API_KEYS", "key")
    assert launch.exposure_warning(open_config) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_as_soon_as_it_is_offered_is_noted(interruptible, number):
    before = signal.getsignal(signal.SIGTERM)
    wait_for_interrupt(lambda: signal.raise_signal(number))
    assert signal.getsignal(signal.SIGINT) is interruptible
    assert signal.getsignal(signal.SIGTERM) is before
