"""What other servers and clients send: what is harmless changes nothing, the rest is refused."""

import pytest

from tests.serving.test_choices import TOOLS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "c"}
OPTIONS = {"temperature": 1.0, "seed": 3, "max_tokens": 8, "ignore_eos": True}


def content(answer):
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


FIELDS_OF_BOTH = [
    {"best_of": 1},
    {"use_beam_search": False},
    {"early_stopping": False},
    {"length_penalty": 1.0},
    {"length_penalty": 1},
    {"skip_special_tokens": True},
    {"spaces_between_special_tokens": True},
    {"detokenize": True},
    {"prompt_logprobs": None},
    {"echo": False},
    {"store": True},
    {"metadata": {"run": 3}},
    {"user": "ann"},
    {"safety_identifier": "x"},
    {"service_tier": "flex"},
    {"priority": 1},
    {"request_id": "r"},
    {"max_tokens": 8.0},
    {"n": 1.0},
    {"seed": 3.0},
    {"stop": None},
    {"logit_bias": {}},
    {"bad_words": []},
    {"return_tokens_as_token_ids": False},
    {"guided_decoding_backend": None},
    {"diffusion": None},
]
FIELDS_OF_CHATS = [
    {"chat_template": None},
    {"logprobs": False, "top_logprobs": 0},
    {"top_logprobs": 0},
    {"max_completion_tokens": 8},
    {"parallel_tool_calls": True},
    {"tools": []},
    {"tool_choice": "none"},
    {"modalities": ["text"]},
    {"prediction": {"type": "content", "content": "x"}},
    {"reasoning_effort": "none"},
    {"reasoning": {"effort": "none"}},
    {"reasoning": {"enabled": False}},
    {"verbosity": "medium"},
    {"include_reasoning": True},
    {"add_special_tokens": False},
    {"documents": []},
    {"add_generation_prompt": True, "continue_final_message": False},
]
FIELDS_OF_TEXTS = [
    {"suffix": None},
    {"suffix": ""},
    {"logprobs": None},
    {"add_special_tokens": True},
]


@pytest.mark.parametrize("fields", FIELDS_OF_BOTH + FIELDS_OF_CHATS, ids=str)
def test_a_field_that_asks_for_nothing_changes_no_chat(client, fields):
    plain = client.post(CHAT, messages=[USER], **OPTIONS)
    assert content(client.post(CHAT, **{"messages": [USER], **OPTIONS, **fields})) == content(plain)


@pytest.mark.parametrize("fields", FIELDS_OF_BOTH + FIELDS_OF_TEXTS, ids=str)
def test_a_field_that_asks_for_nothing_changes_no_continuation(client, fields):
    plain = client.post(TEXT, prompt="hi", **OPTIONS)
    assert content(client.post(TEXT, **{"prompt": "hi", **OPTIONS, **fields})) == content(plain)


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 2},
        {"use_beam_search": True},
        {"length_penalty": 0.5},
        {"skip_special_tokens": False},
        {"detokenize": False},
        {"bad_words": ["a"]},
        {"allowed_token_ids": [5]},
        {"echo": True},
        {"chat_template": "x"},
        {"reasoning_effort": "low"},
        {"reasoning": {"effort": "low"}},
        {"verbosity": "low"},
        {"top_logprobs": 3},
        {"max_completion_tokens": 9},
        {"documents": [{"text": "x"}]},
        {"ebnf": "root ::= x"},
        {"max_tokens": 8.5},
        {"max_tokens": True},
        {"temprature": 1},
    ],
    ids=str,
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(client, fields):
    answer = client.post(CHAT, **{"messages": [USER], **OPTIONS, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == next(iter(fields))


def calling(**changes):
    return [USER, {"role": "assistant", "content": None, "tool_calls": [CALL | changes]}, RESULT]


def called(**changes):
    return calling(function={"name": "add", **changes})


ANSWERED = {"role": "assistant", "content": "x"}
PART = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ([USER | {"name": "Ann"}], [USER]),
        ([USER | {"type": "text"}], [USER]),
        ([USER | {"id": "m1", "status": "completed", "metadata": {}}], [USER]),
        ([USER | {"cache_control": {"type": "ephemeral"}}], [USER]),
        ([USER | {"content": [PART]}], [USER]),
        ([USER | {"content": [PART | {"cache_control": {"type": "ephemeral"}}]}], [USER]),
        ([USER, ANSWERED | {"reasoning_content": None}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"reasoning": ""}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"reasoning_details": [{}]}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"annotations": [{"type": "x"}]}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"refusal": None, "audio": None}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"function_call": None}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"tool_calls": []}, USER], [USER, ANSWERED, USER]),
        ([USER, ANSWERED | {"provider_specific_fields": {}}, USER], [USER, ANSWERED, USER]),
        (calling(index=0), calling()),
        (calling(id=None), calling()),
        (calling(cache_control={}, extra_content={}), calling()),
        (called(arguments=""), calling()),
        (called(arguments=None), calling()),
        (called(), calling()),
        (called(arguments={"x": 1}), called(arguments='{"x":1}')),
        (called(arguments='{"x": "\\u00e9"}'), called(arguments='{"x":"é"}')),
        ([*calling()[:2], RESULT | {"name": "add"}], calling()),
    ],
    ids=str,
)
def test_what_others_write_into_messages_changes_no_prompt(client, written, plain):
    tokens = [client.post("/tokenize", messages=m).json() for m in (written, plain)]
    assert tokens[0]["tokens"] == tokens[1]["tokens"]
    assert client.post(CHAT, messages=written, max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "f", "parameters": None}},
        {"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral"}},
        {"type": "function", "function": {"name": "f", "strict": None, "description": None}},
    ],
)
def test_what_others_write_into_tools_changes_no_prompt(client, tool):
    plain = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    tokens = [
        client.post("/tokenize", messages=[USER], tools=[each]).json() for each in (tool, plain)
    ]
    assert tokens[0]["tokens"] == tokens[1]["tokens"]


@pytest.mark.parametrize("temperature", [0, 1e-8, 1e-40])
def test_next_to_no_temperature_is_none(client, temperature):
    greedy = client.post(TEXT, prompt="hi", max_tokens=8, ignore_eos=True)
    asked = {"temperature": temperature, "seed": 5}
    answer = client.post(TEXT, prompt="hi", max_tokens=8, ignore_eos=True, **asked)
    assert content(answer) == content(greedy)
    assert client.post(TEXT, prompt="hi", max_tokens=1, temperature=0.005).status_code == 200


def test_usage_comes_with_every_chunk_where_it_is_asked_for(client):
    options = {"messages": [USER], **OPTIONS}
    *chunks, last = client.events(
        CHAT, **options, stream_options={"include_usage": True, "continuous_usage_stats": True}
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"] == 8
    *chunks, last = client.events(CHAT, **options, stream_options={"include_usage": True})
    assert all("usage" not in chunk for chunk in chunks) and "usage" in last


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {
        "mode": "required",
        "tools": [{"type": "function", "function": {"name": "subtract"}}],
    },
}


def test_only_allowed_tools_are_called(roomy):
    options = {"messages": [USER], "tools": TOOLS, "temperature": 1.0, "n": 4}
    answers = roomy.post(CHAT, **options, tool_choice=ALLOWED, max_tokens=200).json()["choices"]
    calls = [c for a in answers for c in a["message"].get("tool_calls", [])]
    assert calls and {call["function"]["name"] for call in calls} == {"subtract"}
    unknown = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]}
    refused = roomy.post(CHAT, **options, tool_choice=ALLOWED | {"allowed_tools": unknown})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b'{"model": "tiny"}', None, "send the header Content-Type: application/json"),
        (b'{"model": "tiny"}', "text/plain", "application/json, not text/plain"),
        (b"[1]", "application/json", "send a JSON object"),
        (b'"a"', "application/json", "send a JSON object"),
        (b"", "application/json", "send a JSON object"),
    ],
)
def test_a_body_that_is_no_object_is_told_what_to_send(client, body, content_type, words):
    headers = {"content-type": content_type} if content_type else {}
    answer = client.run(lambda http: http.post(CHAT, content=body, headers=headers))
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
