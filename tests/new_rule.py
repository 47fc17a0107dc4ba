"""Run by tests/test_rules.py where the package has one rule more, ``margin``, with an option."""

import contextlib
import io
from pathlib import Path

import torch
from starlette.testclient import TestClient

import a2d_ray
from a2d_ray import SamplingParams
from a2d_ray.cli import load_config
from a2d_ray.config import RULES, SampleConfig, SamplingSection, override
from a2d_ray.evaluation.backends.endpoint import request_body
from a2d_ray.evaluation.harness.options import read_options, read_task_options
from a2d_ray.generation.reference import sample
from a2d_ray.http.errors import not_ready
from a2d_ray.models.contract import Contract
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.openai.protocol import CompletionRequest

OWN = {"margin_threshold": 0.3}
WANTED = SamplingParams(rule="margin", **OWN)


class Starting:
    """A model of which nothing is known yet."""

    async def facts(self):
        raise not_ready("it starts")


def help_text():
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        load_config(SampleConfig, "sample", ["--help"])
    return text.getvalue()


def refusal_of(**options):
    try:
        return SamplingParams(**options)
    except ValueError as error:
        return str(error)


def over_http(options):
    request = CompletionRequest.model_validate({"model": "m", "prompt": "p", "diffusion": options})
    return request.params(SamplingSection(), seed=0)


assert Path(a2d_ray.__file__).is_relative_to(Path.cwd()), a2d_ray.__file__
assert "margin" in RULES
assert SamplingParams(**OWN) == WANTED
assert "has no effect with rule=steps" in refusal_of(rule="steps", **OWN)
assert "should be less than or equal to 1" in refusal_of(margin_threshold=2)

Path("job.yaml").write_text("model: {path: x}\nsampling: {margin_threshold: 0.3}\n")
assert load_config(SampleConfig, "sample", ["job.yaml"]).sampling == SamplingSection(**OWN)
Path("empty.yaml").write_text("model: {path: x}\n")
arguments = ["empty.yaml", "sampling.margin_threshold=0.3"]
assert load_config(SampleConfig, "sample", arguments).sampling == SamplingSection(**OWN)
assert "sampling.margin_threshold=float  (default: 0.2)" in help_text()
assert "Least margin (rule margin)." in help_text()

assert over_http(OWN) == WANTED
assert over_http({"threshold": 0.5}).rule == "threshold"
asked = request_body(WANTED, {"block_size": 4, "defaults": {}})["extra_body"]["diffusion"]
assert asked["margin_threshold"] == 0.3
assert over_http(asked) == WANTED.model_copy(update={"block_size": 4})
card = TestClient(create_app({"m": Starting()})).get("/v1/models/m").json()["diffusion"]
assert "margin" in card["rules"]
option = card["options"]["margin_threshold"]
assert (option["rules"], option["default"], option["maximum"]) == (["margin"], 0.2, 1)

assert read_options({"pretrained": "x", **OWN}).sampling == OWN
assert SamplingParams(**read_task_options(OWN)).rule == "margin"
assert override(SamplingParams(steps=4).model_dump(), OWN)["rule"] == "margin"  # chat's /set

logits = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
contract = Contract(objective="bd3lm", mask_token_id=39, block_size=4)
answer = sample(
    lambda ids_T, mask_TT: logits[: len(ids_T)],
    [[1, 2]],
    SamplingParams(margin_threshold=0.0, max_new_tokens=8, ignore_eos=True),
    contract,
)
assert answer.num_forwards == 2  # each block at once
print("known")
