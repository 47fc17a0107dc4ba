"""OpenAI's own client over a socket: every parameter that it has, and the fields that only we have.

The parameters are read from the client itself: one that a new version adds is either honoured and
listed here, or refused by name.
"""

import inspect
import json

import jsonschema
import openai
import pytest
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions

from a2d_ray import SamplingParams
from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening

MESSAGES = [{"role": "user", "content": "2+2?"}]
NOT_IN_THE_BODY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
REQUIRED = {"model", "messages", "prompt"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "boolean"}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}},
    "required": ["kind"],
    "additionalProperties": False,
}
HONOURED = {
    "frequency_penalty": 0.5,
    "logit_bias": {"70": 1},
    "max_tokens": 4,
    "n": 2,
    "presence_penalty": 0.5,
    "seed": 1,
    "stop": ["e"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "top_p": 0.5,
    "user": "ann",
}
CHAT_HONOURED = HONOURED | {
    "logprobs": True,
    "max_completion_tokens": 4,
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "4"},  # this and three more: ignored
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "response_format": {"type": "text"},
    "safety_identifier": "ann",
    "service_tier": "flex",
    "store": True,
    "tool_choice": "none",
    "tools": [TOOL],
    "top_logprobs": 2,
}
TEXT_HONOURED = HONOURED | {"echo": True, "logprobs": 2}
NEEDS = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [TOOL]},
}


def parameters(method) -> list[str]:
    return sorted(set(inspect.signature(method).parameters) - NOT_IN_THE_BODY - REQUIRED)


@pytest.fixture(scope="module")
def client(roomy_lm):
    server = ModelServer(roomy_lm, SamplingSection(max_new_tokens=8))
    with (
        listening(create_app({"tiny": server})) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client
    server.close()


def check_parameter(create, name: str, honoured: dict, **required) -> None:
    if name in honoured:
        create(**required, **NEEDS.get(name, {}), **{name: honoured[name]})
        return
    with pytest.raises(openai.BadRequestError) as refused:
        create(**required, **{name: "something"})
    assert refused.value.param == name
    assert name in refused.value.body["message"]


@pytest.mark.parametrize("name", parameters(ChatCompletions.create))
def test_every_chat_parameter_is_honoured_or_refused_by_name(client, name):
    create = client.chat.completions.create
    check_parameter(create, name, CHAT_HONOURED, model="tiny", messages=MESSAGES)


@pytest.mark.parametrize("name", parameters(Completions.create))
def test_every_completion_parameter_is_honoured_or_refused_by_name(client, name):
    create = client.completions.create
    check_parameter(create, name, TEXT_HONOURED, model="tiny", prompt="a")


def test_what_is_honoured_is_a_parameter_of_the_client():
    assert set(CHAT_HONOURED) <= set(parameters(ChatCompletions.create))
    assert set(TEXT_HONOURED) <= set(parameters(Completions.create))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "threshold", "threshold": 0.3},
        {"rule": "steps", "steps": 2},
        {"rule": "prefix"},
        {"factor": 2.0},
        {"rule": "steps", "block_size": 2},
    ],
)
def test_diffusion_options_in_the_extra_body_are_those_of_the_python_api(client, roomy_lm, options):
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=12,
        extra_body={"diffusion": options, "top_k": 3, "min_p": 0.01, "ignore_eos": True},
    )
    options = options if "rule" in options else options | {"rule": "factor"}
    params = SamplingParams(max_new_tokens=12, top_k=3, min_p=0.01, ignore_eos=True, **options)
    (wanted,) = roomy_lm.generate([MESSAGES], params)
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.diffusion["forwards"] == wanted.num_forwards


def test_extra_fields_that_nobody_knows_are_refused_by_name(client):
    for extra, param in (
        ({"temprature": 1}, "temprature"),
        ({"diffusion": {"tempo": 1}}, "diffusion.tempo"),
        ({"diffusion": {"rule": "steps", "threshold": 0.5}}, "diffusion.threshold"),
        ({"diffusion": {"block_size": 0}}, "diffusion.block_size"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="tiny", prompt="a", extra_body=extra)
        assert refused.value.param == param


def test_a_denoised_stream_joins_to_the_text_and_shows_its_canvas(client):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16}
    extra = {"ignore_eos": True, "diffusion": {"rule": "steps"}}
    whole = client.chat.completions.create(**options, extra_body=extra)
    extra["diffusion"] |= {"stream_mode": "denoise"}
    chunks = list(client.chat.completions.create(**options, stream=True, extra_body=extra))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == whole.choices[0].message.content
    canvases = [c.diffusion for c in choices if getattr(c, "diffusion", None)]
    assert all(canvas["replace"] is True for canvas in canvases)
    assert any(None in canvas["canvas"] for canvas in canvases)  # masks that are still to fill


def test_a_cache_salt_keeps_prompts_apart(client):
    def num_cached(**extra) -> int:
        answer = client.completions.create(
            model="tiny", prompt="salt and pepper " * 4, max_tokens=4, extra_body=extra
        )
        return answer.usage.prompt_tokens_details.cached_tokens

    assert num_cached(cache_salt="one") == 0
    assert num_cached(cache_salt="one") > 0
    assert num_cached(cache_salt="two") == 0
    assert num_cached() == 0


def test_tools_schemas_choices_seeds_and_logprobs_through_the_client(client):
    create = client.chat.completions.create
    options = {"model": "tiny", "messages": MESSAGES, "temperature": 1.0, "seed": 3}
    called = create(**options, tools=[TOOL], tool_choice="required", max_tokens=200)
    (call,) = called.choices[0].message.tool_calls
    assert (called.choices[0].finish_reason, call.function.name) == ("tool_calls", "add")
    assert set(json.loads(call.function.arguments)) == {"x"}
    schema = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
    formed = create(**options, response_format=schema, max_tokens=200)
    jsonschema.validate(json.loads(formed.choices[0].message.content), SCHEMA)
    several = create(**options, n=3, max_tokens=8, logprobs=True, top_logprobs=2)
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) == 3
    for choice in several.choices:
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        assert all(token.logprob <= 0 for token in choice.logprobs.content)
    again = create(**options, n=3, max_tokens=8)
    assert [choice.message.content for choice in again.choices] == texts
