"""What operators get: metrics, the dashboard over them, Serve's YAML files."""

import asyncio
import json
import re
import time
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from a2d_ray.cli import validate
from a2d_ray.config import ServeConfig
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.metrics import EndpointMetrics, merge
from a2d_ray.serving.model.server import ModelServer
from a2d_ray.serving.openai.protocol import CompletionRequest
from tests.serving.in_process import Client

ROOT = Path(__file__).parents[2]
TEXT = "/v1/completions"


def samples(text: str) -> dict[tuple[str, str], float]:
    """Value by (name, labels), without the buckets."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "replica")}
            found[sample.name, json.dumps(labels, sort_keys=True)] = sample.value
    return found


def test_metrics_count_what_was_answered(lm):
    server = ModelServer(lm, name="tiny")
    client = Client(create_app({"tiny": server}))
    usages = [
        client.post(TEXT, prompt="once upon a time", max_tokens=9, ignore_eos=True).json()["usage"]
        for _ in range(2)
    ]
    client.post(TEXT, prompt="x", max_tokens="five")
    found = samples(client.get("/metrics").text)

    def value(name, **labels):
        return found[f"a2d:{name}", json.dumps(labels, sort_keys=True)]

    assert value("generation_tokens_total") == sum(u["completion_tokens"] for u in usages) == 18
    assert value("prompt_tokens_total") == sum(u["prompt_tokens"] for u in usages)
    cached = [u["prompt_tokens_details"]["cached_tokens"] for u in usages]
    assert value("prefix_cache_hits_total") == sum(cached) > 0
    assert value("request_success_total", finished_reason="length") == 2
    assert value("time_to_first_token_seconds_count") == 2
    assert value("e2e_request_latency_seconds_count") == 2
    forwards = [u["diffusion"]["forwards"] for u in usages]
    assert value("tokens_per_forward_sum") == pytest.approx(sum(9 / f for f in forwards))
    assert value("engine_rounds") == sum(forwards)
    assert value("num_requests_running") == value("kv_cache_usage_perc") == 0
    assert value("http_requests_total", method="POST", route=TEXT, status="200") == 2
    assert value("http_requests_total", method="POST", route=TEXT, status="400") == 1
    server.close()


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_cached_of_a_prompt_counts_once_however_many_answers(lm, stream):
    """cached <= prompt, as clients are billed and in the metrics, whatever n."""
    server = ModelServer(lm)
    client = Client(create_app({"tiny": server}))
    options = {"prompt": ["once upon a time " * 3, "long ago " * 6], "n": 3, "max_tokens": 4}
    usages = []
    for _ in range(2):
        if stream:
            asked = {"stream_options": {"include_usage": True}}
            usages.append(client.events(TEXT, **options, **asked)[-1]["usage"])
        else:
            usages.append(client.post(TEXT, **options).json()["usage"])
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    num_prompt = usages[0]["prompt_tokens"]
    assert num_prompt == usages[1]["prompt_tokens"] == sum(map(len, options["prompt"]))
    assert 0 < cached[1] <= num_prompt
    found = samples(client.get("/metrics").text)
    assert found["a2d:prefix_cache_hits_total", "{}"] == sum(cached)
    assert found["a2d:prefix_cache_queries_total", "{}"] == 2 * num_prompt
    server.close()


@pytest.mark.parametrize(("ahead_s", "least_s"), [(-100.0, 100.0), (0.0, 0.3), (1000.0, 0.0)])
def test_times_count_from_the_arrival(lm, ahead_s, least_s):
    """Waits before this process and before the tokenizer count; a clock ahead takes nothing off."""
    server = ModelServer(lm)
    server._tokenizer_thread.submit(time.sleep, 0.3)
    request = CompletionRequest(model="tiny", prompt="x", max_tokens=4)

    async def answer():
        async for _ in server.generate(request, arrived=time.time() + ahead_s):
            pass

    asyncio.run(answer())
    found = samples("".join(asyncio.run(server.metrics())))
    for name in ("request_queue_time", "time_to_first_token", "e2e_request_latency"):
        assert least_s <= found[f"a2d:{name}_seconds_sum", "{}"] < least_s + 60
    server.close()


def test_steps_per_block_are_those_of_the_rule(lm):
    """8 tokens in blocks of 4 with 4 steps in all: two blocks of two steps."""
    server = ModelServer(lm)
    client = Client(create_app({"tiny": server}))
    options = {"max_tokens": 8, "ignore_eos": True, "diffusion": {"rule": "steps", "steps": 4}}
    assert client.post(TEXT, prompt="x", **options).status_code == 200
    found = samples(client.get("/metrics").text)
    assert found["a2d:denoise_steps_per_block_count", "{}"] == 2
    assert found["a2d:denoise_steps_per_block_sum", "{}"] == 4
    server.close()


def test_pages_of_several_replicas_become_one():
    page = '# HELP a2d:x_total X.\n# TYPE a2d:x_total counter\na2d:x_total{{replica="{}"}} {}\n'
    merged = merge([page.format("a", 1), page.format("b", 2)])
    assert merged.count("# TYPE") == 1
    values = {
        s.labels["replica"]: s.value
        for f in text_string_to_metric_families(merged)
        for s in f.samples
    }
    assert values == {"a": 1, "b": 2}


def test_the_dashboard_asks_for_metrics_that_exist(lm):
    server = ModelServer(lm)
    client = Client(create_app({"tiny": server}))
    client.post(TEXT, prompt="x", max_tokens=4)
    page = client.get("/metrics").text + EndpointMetrics("tiny", lambda: 0).text()
    there = {s.name for f in text_string_to_metric_families(page) for s in f.samples}
    board = json.loads((ROOT / "cluster/monitoring/grafana/models.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"a2d:\w+", target["expr"])
    }
    assert len(asked) >= 12
    assert asked <= there
    server.close()


FILES = sorted((ROOT / "jobs/configs").glob("serve_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_serves_yaml_is_valid_before_anything_runs(path):
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(path.read_text())
    (application,) = ServeDeploySchema.model_validate(values).applications
    assert application.import_path == "a2d_ray.serving:build_openai_app"
    validate(ServeConfig, application.args)


def test_the_files_are_there():
    assert {path.stem for path in FILES} >= {"serve_laptop", "serve_gpu", "serve_autoscaling"}


def test_autoscaling_reaches_serve_and_contradictions_are_refused(checkpoint):
    from a2d_ray.serving import build_openai_app

    models = [{"id": "m", "load": {"path": str(checkpoint)}}]
    scaling = {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 3}
    config = validate(ServeConfig, {"models": models, "autoscaling": scaling})
    application = build_openai_app(config)
    (model,) = application._bound_deployment.init_args[0].values()
    made = model._bound_deployment._deployment_config.autoscaling_config
    assert (made.min_replicas, made.max_replicas, made.target_ongoing_requests) == (2, 5, 3)
    for wrong, message in (
        ({"autoscaling": scaling, "num_replicas": 2}, "num_replicas"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "min_replicas"),
        ({"models": [models[0] | {"sampling": {"n": 65}}]}, r"models\.0\.sampling\.n=65"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(ServeConfig, {"models": models} | wrong)
