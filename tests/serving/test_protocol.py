"""What a request may hold: everything else is a 400 that names the parameter."""

import pickle

import pytest
from pydantic import ValidationError

from a2d_ray.config import SamplingSection
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.http.errors import RequestError
from a2d_ray.http.problems import to_request_error
from a2d_ray.serving.openai.chat_protocol import ChatCompletionRequest
from a2d_ray.serving.openai.protocol import CompletionRequest
from a2d_ray.serving.openai.structured import parse_calls

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "tiny", "messages": [USER]}
TEXT = {"model": "tiny", "prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def problem(request_class, values) -> RequestError:
    try:
        request_class.model_validate(values)
    except ValidationError as error:
        return to_request_error([p | {"loc": ("body", *p["loc"])} for p in error.errors()])
    except RequestError as error:
        return error
    raise AssertionError(f"{values} was accepted")


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("n", 0, "n"),
        ("n", True, "n"),
        ("n", 129, "n"),
        ("top_p", 0, "top_p"),
        ("top_k", 1.5, "top_k"),
        ("presence_penalty", 2.1, "presence_penalty"),
        ("logit_bias", {"five": 1}, "logit_bias"),
        ("logit_bias", {"5": 101}, "logit_bias"),
        ("logprobs", 1, "logprobs"),
        ("top_logprobs", 3, "top_logprobs"),
        ("tools", [{"type": "function"}], "tools[0].function"),
        ("tools", [TOOL, TOOL], "tools"),
        ("add_generation_prompt", False, "add_generation_prompt"),
        ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
        ("tool_choice", "required", "tool_choice"),
        ("tool_choice", {"type": "function", "function": {"name": "x"}}, "tool_choice"),
        ("response_format", {"type": "yaml"}, "response_format"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
        ("verbosity", "low", "verbosity"),
        ("reasoning_effort", "high", "reasoning_effort"),
        ("max_tokens", "5", "max_tokens"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("temperature", -0.1, "temperature"),
        ("temperature", float("nan"), "temperature"),
        ("seed", "a", "seed"),
        ("stop", "", "stop"),
        ("stop", ["a"] * 17, "stop"),
        ("stop", ["a", 1], "stop[1]"),
        ("stop_token_ids", [1, "x"], "stop_token_ids[1]"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("diffusion", {"rule": "magic"}, "diffusion.rule"),
        ("diffusion", {"threshold": 2}, "diffusion.threshold"),
        ("diffusion", {"steps": 4, "threshold": 0.5}, "diffusion.steps"),
        ("diffusion", {"rule": "steps", "threshold": 0.9}, "diffusion.threshold"),
        ("diffusion", {"rule": "factor", "gamma": 0.5}, "diffusion.gamma"),
        ("diffusion", {"stream_mode": "canvas"}, "diffusion.stream_mode"),
        ("diffusion", {"tempo": 1}, "diffusion.tempo"),
        ("best_of", 2, "best_of"),
        ("messages", [], "messages"),
        ("messages", "hi", "messages"),
        ("messages", [USER, {"role": "robot", "content": "x"}], "messages[1].role"),
        ("messages", [{"role": "user"}], "messages[0]"),
        ("messages", [USER | {"tool_calls": [CALL]}], "messages[0]"),
        ("messages", [USER | {"audio": {"id": "a"}}], "messages[0].audio"),
        ("messages", [USER | {"images": ["a"]}], "messages[0].images"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "messages[0].content[0].type",
        ),
    ],
)
def test_a_chat_field_that_we_cannot_honour_is_named(field, value, param):
    error = problem(ChatCompletionRequest, CHAT | {field: value})
    assert (error.status, error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("prompt", 5, "prompt"),
        ("prompt", [1.5], "prompt[0]"),
        ("logprobs", True, "logprobs"),
        ("logprobs", 21, "logprobs"),
        ("suffix", "x", "suffix"),
        ("best_of", 2, "best_of"),
        ("messages", [USER], "messages"),
    ],
)
def test_a_completion_field_that_we_cannot_honour_is_named(field, value, param):
    error = problem(CompletionRequest, TEXT | {field: value})
    assert (error.status, error.param) == (400, param)


def test_fields_that_ask_for_nothing_are_accepted():
    neutral = {
        "n": 1,
        "top_p": 1.0,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logprobs": False,
        "logit_bias": None,
        "tools": [],
        "response_format": {"type": "text"},
        "user": "ann",
        "metadata": {"a": "b"},
        "store": False,
    }
    ChatCompletionRequest.model_validate(CHAT | neutral)


def test_parameters_are_the_requests_then_the_defaults():
    defaults = SamplingSection(max_new_tokens=7, rule="steps", steps=3, block_size=8)
    chat = ChatCompletionRequest.model_validate(
        CHAT | {"max_completion_tokens": 5, "stop": "x", "diffusion": {"threshold": 0.5}}
    )
    assert chat.params(defaults, seed=11) == SamplingParams(
        max_new_tokens=5, rule="threshold", threshold=0.5, block_size=8, seed=11, stop="x"
    )
    plain = ChatCompletionRequest.model_validate(CHAT | {"seed": 2})
    assert plain.params(defaults, seed=11) == SamplingParams(
        max_new_tokens=7, rule="steps", steps=3, block_size=8, seed=2
    )


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        ([1, 2], [[1, 2]]),
        ([], [[]]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_completion_prompt_is_one_or_many(prompt, prompts):
    assert CompletionRequest.model_validate(TEXT | {"prompt": prompt}).prompts() == prompts


def test_every_rule_and_option_reaches_the_decoder():
    """What a request asks for by an option alone is the rule that has it."""
    for options, wanted in (
        ({"rule": "prefix", "threshold": 0.3}, {"rule": "prefix", "threshold": 0.3}),
        ({"factor": 2.0}, {"rule": "factor", "factor": 2.0}),
        ({"delta": 0.5}, {"rule": "frechet", "delta": 0.5}),
        ({"gamma": 0.5}, {"rule": "entropy_bound", "gamma": 0.5}),
        ({"kl_threshold": 0.1}, {"rule": "klass", "kl_threshold": 0.1}),
        ({"remask_threshold": 0.1}, {"rule": "steps", "remask_threshold": 0.1}),
        ({"remasking": "leftmost"}, {"rule": "steps", "remasking": "leftmost"}),
    ):
        request = CompletionRequest.model_validate(TEXT | {"diffusion": options})
        params = request.params(SamplingSection(rule="steps"), seed=1)
        assert params == SamplingParams(seed=1, **wanted)
    fields = {"top_p": 0.5, "top_k": -1, "min_p": 0.1, "min_tokens": 2, "presence_penalty": 1.0}
    fields |= {"frequency_penalty": 0.5, "repetition_penalty": 1.5, "logit_bias": {"7": -100}}
    request = CompletionRequest.model_validate(TEXT | fields | {"logprobs": 3, "n": 2})
    wanted = fields | {"top_k": 0, "logit_bias": {7: -100.0}, "logprobs": 3}
    assert request.params(SamplingSection(), seed=1) == SamplingParams(seed=1, **wanted)


def test_calls_and_results_of_tools_become_text():
    messages = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    request = ChatCompletionRequest.model_validate(CHAT | {"messages": messages, "tools": [TOOL]})
    (prompt,) = request.prompts()
    assert [m["role"] for m in prompt] == ["system", "user", "assistant", "user"]
    assert '"name": "add"' in prompt[0]["content"]
    assert parse_calls(prompt[2]["content"]) == [("add", "{}")]
    assert prompt[3]["content"] == "<tool_response>\n3\n</tool_response>"


def test_message_parts_are_joined_and_developers_are_the_system():
    message = {"role": "developer", "content": [{"type": "text", "text": t} for t in "ab"]}
    request = ChatCompletionRequest.model_validate({"model": "tiny", "messages": [message]})
    assert request.prompts() == [[{"role": "system", "content": "ab"}]]


def test_errors_survive_pickling():
    error = RequestError("m", status=429, param="p", code="c", retry_after_s=3)
    assert pickle.loads(pickle.dumps(error)).to_dict() == error.to_dict()
    assert error.headers() == {"Retry-After": "3"}
