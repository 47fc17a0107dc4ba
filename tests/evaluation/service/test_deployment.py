"""The application beside a served model, under Ray Serve, as jobs/serve.py starts it."""

import os
import signal
import time

import httpx
import openai
import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from a2d_ray.config import EvaluateConfig, ServeConfig
from a2d_ray.evaluation.harness.suite import run_suite
from a2d_ray.evaluation.service.deployment import (
    build_evaluation_app,
    evaluations_beside,
    own_key,
    run_evaluation_app,
)
from a2d_ray.http.access import ApiKeys
from a2d_ray.serving.ray.launch import running_server
from tests.evaluation.service.conftest import SPELLING, SUMS
from tests.serving.test_serve import free_port


def replica_pids() -> list[int]:
    title = "ray::ServeReplica:a2d-ray-evaluations"
    found = psutil.process_iter(["pid", "cmdline"])
    return [p.pid for p in found if " ".join(p.info["cmdline"] or ()).startswith(title)]


@pytest.mark.cluster
@pytest.mark.slow
def test_an_evaluation_outlives_its_replica_and_equals_an_offline_one(
    ray_local, checkpoints, suites, tmp_path, monkeypatch
):
    monkeypatch.setenv("A2D_API_KEYS", "")
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    load = {"path": str(checkpoints["bd3lm"]), "dtype": "float32", "device": "cpu"}
    config = ServeConfig.model_validate(
        {
            "models": [{"id": "tiny", "load": load}],
            "port": free_port(),
            "security": {"api_keys_file": str(keys)},
            "evaluations": {
                "suites": [str(suites)],
                "storage_path": str(tmp_path / "runs"),
                "concurrency": 1,
            },
        }
    )
    with running_server(config) as url:
        run_evaluation_app(evaluations_beside(config))
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=f"{url}/evaluations", headers=headers, timeout=60) as http:
            assert httpx.get(f"{url}/evaluations").status_code == 401
            models = openai.OpenAI(base_url=url, api_key="secret").models.list()
            assert [model.id for model in models] == ["tiny"]  # the other routes stay the model's
            refused = http.post("", json={"suite": "code", "model": "tiny"})
            assert refused.status_code == 403 and "run_code" in refused.json()["error"]["message"]
            made = http.post("", json={"suite": "short", "model": "tiny"}).json()["id"]
            found = follow(http, made, lambda found: found["progress"]["num_answers"] > 0)
            assert found["status"] == "in_progress"
            (pid,) = replica_pids()
            os.kill(pid, signal.SIGKILL)
            found = follow(http, made, lambda found: found["finished_at"])
            report = http.get(f"/{made}/report").json()
    assert found["status"] == "completed", found
    assert report["tasks"]["a2d_sums"]["speed"]["num_answers"] < 24  # the others were kept
    offline = run_suite(
        EvaluateConfig.model_validate(
            {"name": "o", "model": load, "tasks": [SUMS, SPELLING], "output": str(tmp_path / "o")}
        )
    )
    for name, task in offline["tasks"].items():
        wanted = [(row["answer"], row["value"]) for row in task["samples"]]
        samples = report["tasks"][name]["samples"]
        assert [(row["answer"], row["value"]) for row in samples] == wanted
        assert found["results"][name]["value"] == task["value"]


def follow(http: httpx.Client, evaluation_id: str, is_reached) -> dict:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        answer = http.get(f"/{evaluation_id}")
        if answer.status_code == 200 and is_reached(answer.json()):
            return answer.json()
        time.sleep(0.1)
    raise AssertionError(answer.text)


def test_the_yaml_of_the_documentation_is_valid(suites, tmp_path):
    text = (tmp_path.__class__(__file__).parents[3] / "docs/evaluation.md").read_text()
    (block,) = [part for part in text.split("```") if "build_evaluation_app" in part]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(block.removeprefix("yaml")))
    args = schema.applications[-1].args
    assert schema.applications[-1].route_prefix == "/v1/evaluations"
    args |= {"suites": [str(suites)], "storage_path": str(tmp_path)}
    assert build_evaluation_app(args) is not None


def test_the_section_beside_the_models(checkpoints):
    config = ServeConfig.model_validate(
        {
            "models": [{"id": "m", "load": {"path": "x"}}],
            "host": "0.0.0.0",
            "port": 8123,
            "limits": {"max_body_bytes": 5000},
            "evaluations": {"max_limit": 7},
        }
    )
    beside = evaluations_beside(config)
    assert (beside.endpoint, beside.max_limit) == ("http://127.0.0.1:8123/v1", 7)
    assert (beside.max_body_bytes, beside.security) == (5000, config.security)
    assert evaluations_beside(config.model_copy(update={"evaluations": None})) is None


def test_a_replica_without_the_callers_keys_does_not_start(monkeypatch):
    config = evaluations_beside(
        ServeConfig.model_validate(
            {"models": [{"id": "m", "load": {"path": "x"}}], "evaluations": {}}
        )
    )
    monkeypatch.setenv("A2D_API_KEYS", "one,two")
    assert own_key(config, ApiKeys.read(config.security)) == "one"
    monkeypatch.delenv("A2D_API_KEYS")
    with pytest.raises(ValueError, match=r"A2D_API_KEYS.*security\.api_keys_file"):
        own_key(config, ApiKeys.of(["one"]))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert own_key(config, ApiKeys()) is None
