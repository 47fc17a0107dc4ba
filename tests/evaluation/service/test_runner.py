"""Evaluations that really run: interrupted, resumed, cancelled, and without an endpoint."""

import json
import time

import pytest

from a2d_ray import load
from a2d_ray.evaluation.service import runner as runner_module
from a2d_ray.serving.http.app import create_app as create_model_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.serving.in_process import Client

PATH = "/v1/evaluations"


@pytest.fixture
def endpoint(checkpoints):
    server = ModelServer(load(checkpoints["bd3lm"], dtype="float32", device="cpu"))
    try:
        with listening(create_model_app({"tiny": server})) as url:
            yield f"{url}/v1"
    finally:
        server.close()


def wait_for(client: Client, evaluation_id: str, is_reached) -> dict:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        found = client.get(f"{PATH}/{evaluation_id}").json()
        if is_reached(found):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def test_an_interval_that_is_not_known_is_null():
    task = {"metric": "m,none", "value": 0.5, "num_documents": 1, "higher_is_better": True}
    report = {"tasks": {"t": task | {"samples": [{"value": 0.5}]}}}
    (found,) = runner_module.results_of(report).values()
    assert found["low"] is None and found["high"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_a_cancelled_evaluation_ends_and_the_next_one_runs(serve_evaluations, endpoint):
    runner, app = serve_evaluations(endpoint=endpoint, concurrency=1)
    client = Client(app)
    made = client.post(PATH, suite="short").json()["id"]
    following = client.post(PATH, suite="short", limit=2).json()["id"]
    runner.start()
    wait_for(client, made, lambda found: found["progress"]["num_answers"] > 0)
    deleted = client.run(lambda http: http.delete(f"{PATH}/{made}")).json()
    assert deleted["status"] == "cancelled" and deleted["results"] is None
    found = wait_for(client, following, lambda found: found["finished_at"])
    assert found["status"] == "completed" and found["progress"]["num_tasks_done"] == 2
    assert found["results"]["a2d_sums"]["num_documents"] == 2
    assert client.get(f"{PATH}/{made}").json()["status"] == "cancelled"
    runner.close()


def test_what_the_endpoint_does_not_serve_fails_and_says_so(serve_evaluations, monkeypatch):
    monkeypatch.setattr(runner_module, "_MODEL_TIMEOUT_S", 0.0)
    monkeypatch.setattr(runner_module, "_POLL_S", 0.01)
    runner, app = serve_evaluations()
    client = Client(app)
    made = client.post(PATH, suite="short", model="other").json()["id"]
    runner.start()
    found = wait_for(client, made, lambda found: found["finished_at"])
    assert (found["status"], found["error"]) == ("failed", "the endpoint does not serve 'other'")
    runner.close()
    assert not runner.is_alive


def test_two_runners_of_a_directory_do_not_work_at_once(serve_evaluations, monkeypatch):
    """As when Serve starts a new replica before the old one is gone."""
    monkeypatch.setattr(runner_module, "_MODEL_TIMEOUT_S", 0.0)
    monkeypatch.setattr(runner_module, "_POLL_S", 0.01)
    old, app = serve_evaluations()
    old.start()
    first = Client(app).post(PATH, suite="short", model="other").json()["id"]
    wait_for(Client(app), first, lambda found: found["finished_at"])
    new, app = serve_evaluations()
    new.start()
    client = Client(app)
    made = client.post(PATH, suite="short", model="other").json()["id"]
    time.sleep(0.3)
    assert client.get(f"{PATH}/{made}").json()["status"] == "queued"  # the old one knows it not
    old.close()
    assert wait_for(client, made, lambda found: found["finished_at"])["status"] == "failed"
    new.close()
