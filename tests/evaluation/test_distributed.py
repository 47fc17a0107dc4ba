"""Actors and HTTP give what one process gives."""

from pathlib import Path

import pytest
from fastapi.responses import JSONResponse

from a2d_ray import load
from a2d_ray.config import EvaluateConfig
from a2d_ray.evaluation.harness.suite import run_suite
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.evaluation.hub_data import write_all

SUMS = {"task": "a2d_sums", "metric": "exact_match,strict", "limit": 9}
PLAIN = {"task": "a2d_spelling", "metric": "exact_match,strict", "limit": 4, "chat": False}
CHAT = {"task": "a2d_chat_nelbo", "metric": "nelbo_bits_per_byte,none", "limit": 8}


def measure(checkpoint: Path, output: Path, tasks, **options):
    values = {
        "name": "tiny",
        "model": {"path": str(checkpoint)},
        "tasks": tasks,
        "output": str(output),
        "batch_size": 2,
    }
    if "endpoint" not in options:  # one has a device of its own, and gives no likelihoods
        values["model"] |= {"device": "cpu", "dtype": "float32"}
        values["mc_num"] = 4
    report = run_suite(EvaluateConfig.model_validate(values | options))
    return {
        name: (task["value"], [(row["answer"], row["value"]) for row in task["samples"]])
        for name, task in report["tasks"].items()
    }


@pytest.mark.cluster
@pytest.mark.slow
def test_sharded_over_actors_is_one_process(checkpoints, tmp_path, ray_local):
    tasks = [SUMS, CHAT]
    alone = measure(checkpoints["bd3lm"], tmp_path / "alone", tasks)
    sharded = measure(checkpoints["bd3lm"], tmp_path / "sharded", tasks, num_workers=2)
    assert sharded == alone
    with pytest.raises(ValueError, match=r"num_workers=99 asks for 99 CPUs .*Ray has 8"):
        measure(checkpoints["bd3lm"], tmp_path / "many", tasks, num_workers=99)


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_an_endpoint_gives_the_same_greedy_answers(checkpoints, tmp_path, objective):
    checkpoint = checkpoints[objective]
    tasks = [SUMS | {"mdlm_block_size": 3}, PLAIN]
    server = ModelServer(load(checkpoint, dtype="float32", device="cpu"))
    try:
        with listening(create_app({"tiny": server})) as url:
            served = measure(checkpoint, tmp_path / "http", tasks, endpoint=f"{url}/v1")
            with pytest.raises(ValueError, match="endpoint"):
                measure(checkpoint, tmp_path / "http", [CHAT], endpoint=f"{url}/v1")
            with pytest.raises(ValueError, match="served_model=other"):
                measure(
                    checkpoint,
                    tmp_path / "http",
                    [SUMS],
                    endpoint=f"{url}/v1",
                    served_model="other",
                )
    finally:
        server.close()
    assert served == measure(checkpoint, tmp_path / "offline", tasks)
    if objective == "mdlm":  # or a card without an objective would pass unseen
        assert served != measure(checkpoint, tmp_path / "whole", [SUMS, PLAIN])


def test_code_tasks_whose_answer_has_begun_are_the_same_over_http(checkpoints, tmp_path):
    """MBPP's prompt ends in the middle of the assistant's answer."""
    write_all(tmp_path / "data", ["x"], ["math"])
    sampling = {"max_new_tokens": 12}
    task = {"task": "a2d_mbpp_instruct", "metric": "pass@1,none", "sampling": sampling}
    options = {"datasets_dir": str(tmp_path / "data"), "run_code": True}
    server = ModelServer(load(checkpoints["bd3lm"], dtype="float32", device="cpu"))
    try:
        with listening(create_app({"tiny": server})) as url:
            endpoint = {"endpoint": f"{url}/v1", **options}
            served = measure(checkpoints["bd3lm"], tmp_path / "http", [task], **endpoint)
    finally:
        server.close()
    assert served == measure(checkpoints["bd3lm"], tmp_path / "here", [task], **options)


def test_another_model_under_the_same_name_is_asked_again(checkpoints, tmp_path):
    """Answers belong to weights, not to a name; those of the same weights are not asked twice."""
    models = {name: load(path, dtype="float32", device="cpu") for name, path in checkpoints.items()}
    first, second = (ModelServer(models[name]) for name in ("bd3lm", "mdlm"))
    served = {"tiny": first}
    tasks = [SUMS]

    def run(directory):
        return measure(checkpoints["bd3lm"], tmp_path / directory, tasks, endpoint=f"{url}/v1")

    try:
        with listening(create_app(served)) as url:
            answers = run("kept")
            served["tiny"] = second
            assert run("kept") == run("fresh") != answers
            served["tiny"] = Unable(first)
            assert run("kept") == answers
    finally:
        first.close()
        second.close()


class Unable:
    """A server that knows its model and generates nothing."""

    def __init__(self, server):
        self.facts = server.facts


def test_answers_of_an_unknown_model_are_kept_for_one_run(checkpoints, tmp_path, caplog):
    server = Nameless(load(checkpoints["bd3lm"], dtype="float32", device="cpu"))
    try:
        with listening(foreign(create_app({"tiny": server}))) as url:
            for _ in range(2):
                measure(checkpoints["bd3lm"], tmp_path, [SUMS], endpoint=f"{url}/v1")
                assert server.num_asked == 9
                server.num_asked = 0
    finally:
        server.close()
    assert "kept for this run only" in caplog.text


class Nameless(ModelServer):
    """Counts what it is asked."""

    num_asked = 0

    def generate(self, request, cache_salt=""):
        self.num_asked += 1
        return super().generate(request, cache_salt)


def foreign(app):
    """The application as a server of another kind: its cards tell names alone."""

    @app.middleware("http")
    async def bare(request, call_next):
        if request.url.path != "/v1/models":
            return await call_next(request)
        card = {"id": "tiny", "object": "model", "created": 0, "owned_by": "others"}
        return JSONResponse({"object": "list", "data": [card]})

    return app
