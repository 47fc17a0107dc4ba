"""Tools: what their schemas refer to, several calls, one spelling; forms that nothing fulfils."""

import json

import jsonschema
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "2+2?"}
OPTIONS = {"messages": [USER], "temperature": 1.0, "max_tokens": 200}


def tool(parameters, name="f"):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def an_object(properties, **more):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


ONE, TWO = {"const": 1}, {"enum": [2, 22]}
REFERRING = {
    "defs": an_object({"item": {"$ref": "#/$defs/Item"}}, **{"$defs": {"Item": ONE}}),
    "definitions": an_object({"item": {"$ref": "#/definitions/Item"}}, definitions={"Item": ONE}),
    "property": an_object({"a": ONE, "b": {"$ref": "#/properties/a"}}),
    "a name with signs": an_object(
        {"item": {"$ref": "#/$defs/A%20b~1c"}}, **{"$defs": {"A b/c": ONE}}
    ),
    "root": {"$ref": "#/$defs/Args", "$defs": {"Args": an_object({"item": ONE})}},
    "one through another": an_object(
        {"item": {"$ref": "#/$defs/A"}}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": ONE}}
    ),
    "nullable": an_object(
        {"item": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}}, **{"$defs": {"A": ONE}}
    ),
    "recursion": an_object(
        {"node": {"$ref": "#/$defs/Node"}},
        **{"$defs": {"Node": {"anyOf": [an_object({"next": {"$ref": "#/$defs/Node"}}), ONE]}}},
    ),
    "recursion of the root": {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "required": ["children"],
        "additionalProperties": False,
    },
    "id": an_object({"x": {"$ref": "#/$defs/X"}}, **{"$id": "http://a/b", "$defs": {"X": ONE}}),
    "anchor": an_object({"x": {"$ref": "#there"}}, **{"$defs": {"X": {"$anchor": "there"} | ONE}}),
}


def calls_of(answer):
    assert answer.status_code == 200, answer.text
    found = []
    for choice in answer.json()["choices"]:
        if choice["finish_reason"] == "tool_calls":
            found += [call["function"] for call in choice["message"]["tool_calls"]]
    return found


@pytest.mark.parametrize("choice", ["required", "auto", "none", "named"])
@pytest.mark.parametrize("parameters", REFERRING.values(), ids=REFERRING)
def test_references_in_parameters_point_at_what_they_meant(roomy, parameters, choice):
    asked = {"type": "function", "function": {"name": "f"}} if choice == "named" else choice
    options = OPTIONS | {"tools": [tool(parameters)], "tool_choice": asked, "seed": 1}
    calls = calls_of(roomy.post(CHAT, **options, n=2, logit_bias={"96": 3, "127": 3}))
    for call in calls:
        jsonschema.validate(json.loads(call["arguments"]), parameters)
    if choice in ("required", "named") and "recursion" not in str(parameters):
        assert calls or "$ref" in str(parameters)


def test_tools_whose_definitions_have_one_name_keep_their_own(roomy):
    tools = [
        tool(an_object({"x": {"$ref": "#/$defs/Item"}}, **{"$defs": {"Item": item}}), name)
        for name, item in (("one", ONE), ("two", TWO))
    ]
    calls = []
    for seed in range(3):
        options = OPTIONS | {"tools": tools, "tool_choice": "required", "seed": seed, "n": 4}
        calls += calls_of(roomy.post(CHAT, **options))
    assert {call["name"] for call in calls} == {"one", "two"}
    for call in calls:
        assert json.loads(call["arguments"])["x"] in ([1] if call["name"] == "one" else [2, 22])


SWITCH = tool(an_object({"on": {"type": "boolean"}}), "switch")


@pytest.mark.parametrize(("asked", "most"), [(None, 9), (True, 9), (False, 1)])
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_parallel_tool_calls_are_several_or_one(roomy, asked, most, choice):
    newline = roomy.post("/tokenize", prompt="\n").json()["tokens"][0]
    options = OPTIONS | {"tools": [SWITCH], "tool_choice": choice, "parallel_tool_calls": asked}
    options |= {"messages": [USER], "max_tokens": 700, "n": 6, "seed": 2}
    bias = {str(roomy.post("/tokenize", prompt="<").json()["tokens"][0]): 5, str(newline): 1}
    answer = roomy.post(CHAT, **options, logit_bias=bias)
    lengths = []
    for choice_ in answer.json()["choices"]:
        calls = choice_["message"].get("tool_calls", [])
        lengths.append(len(calls))
        assert len({call["id"] for call in calls}) == len(calls)
        assert all(set(json.loads(call["function"]["arguments"])) == {"on"} for call in calls)
    assert max(lengths) <= most and (most == 1 or max(lengths) > 1), lengths


def test_several_calls_are_numbered_in_a_stream(roomy):
    options = OPTIONS | {"tools": [SWITCH], "tool_choice": "required", "max_tokens": 700}
    options |= {"seed": 2, "n": 6}
    whole = roomy.post(CHAT, **options).json()["choices"]
    chunks = [chunk["choices"][0] for chunk in roomy.events(CHAT, **options)]
    for choice in whole:
        deltas = [c["delta"] for c in chunks if c["index"] == choice["index"]]
        streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
        calls = choice["message"].get("tool_calls", [])
        assert [call["function"] for call in streamed] == [call["function"] for call in calls]
        assert [call["index"] for call in streamed] == list(range(len(calls)))


def assembled(chunks):
    """The message as clients put it together from a stream."""
    message = {"role": "assistant", "content": None, "tool_calls": []}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        message["content"] = (message["content"] or "") + (delta.get("content") or "")
        message["tool_calls"] += delta.get("tool_calls", [])
    return message


PARAMETERS = an_object({"on": {"type": "boolean"}, "at": {"type": "array", "items": TWO}})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_one", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_history_is_what_was_written(roomy, stream, is_one, seed):
    """The call that is sent back is, token by token, the answer that it was."""
    tools = [tool(PARAMETERS, "switch")]
    options = OPTIONS | {"tools": tools, "tool_choice": "required", "seed": seed}
    options |= {"parallel_tool_calls": not is_one, "logprobs": True, "max_tokens": 600}
    if stream:
        chunks = roomy.events(CHAT, **options)
        message = assembled(chunks)
        entries = [
            e for c in chunks for e in (c["choices"][0]["logprobs"] or {}).get("content", [])
        ]
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = roomy.post(CHAT, **options).json()["choices"]
        message, entries = choice["message"], choice["logprobs"]["content"]
        reason = choice["finish_reason"]
    if reason != "tool_calls":
        pytest.skip("the random model rambled")
    written = "".join(entry["token"] for entry in entries)
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "done"}
        for call in message["tool_calls"]
    ]
    body = {"messages": [USER, message, *results], "tools": tools}
    tokens = roomy.post("/tokenize", **body).json()["tokens"]
    rendered = roomy.post("/detokenize", tokens=tokens).json()["prompt"]
    assert f"<|im_start|>assistant\n{written}<|im_end|>" in rendered
    assert rendered.count("<|im_start|>user") == 2  # results of one answer are one turn


FULFILLED_BY_NOTHING = {
    "left recursion": {"guided_grammar": 'start: start "a"'},
    "a circle of rules": {"guided_grammar": "start: a\na: b\nb: a"},
    "itself": {"guided_json": {"$ref": "#"}},
    "a circle": {
        "guided_json": {
            "$ref": "#/$defs/A",
            "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}},
        }
    },
    "all of itself": {"guided_json": {"allOf": [{"$ref": "#"}]}},
    "no value": {"guided_json": {"enum": []}},
    "no length": {"guided_json": {"type": "string", "minLength": 3, "maxLength": 2}},
    "false": {"guided_json": {"type": "object", "properties": {"a": False}, "required": ["a"]}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("form", FULFILLED_BY_NOTHING.values(), ids=FULFILLED_BY_NOTHING)
def test_a_form_that_nothing_fulfils_is_a_400(client, server, path, form, stream):
    prompt = {"messages": [USER]} if path == CHAT else {"prompt": "a"}
    answer = client.post(path, **prompt, **form, stream=stream)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == next(iter(form))
    assert client.post(path, **prompt, max_tokens=2).status_code == 200
    assert server._engine._engine.num_used_kv_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [{"$ref": "#"}, an_object({"x": {"$ref": "#/properties/x"}}), an_object({"x": {"enum": []}})],
    ids=str,
)
def test_a_tool_that_nothing_fulfils_is_refused(roomy, parameters, stream):
    options = OPTIONS | {"tools": [tool(parameters)], "tool_choice": "required"}
    answer = roomy.post(CHAT, **options, stream=stream)
    if stream and answer.status_code == 200:  # it had begun
        last = answer.text.strip().split("\n\n")[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["param"] == "tools"
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


def test_a_grammar_that_ends_nowhere_behind_text_is_an_event_of_its_stream(roomy):
    """The x is out when it turns out that nothing can follow."""
    options = {"prompt": "a", "guided_grammar": 'start: "xxxxxx" a\na: a "b"'}
    whole = roomy.post(TEXT, **options)
    assert (whole.status_code, whole.json()["error"]["param"]) == (400, "guided_grammar")
    streamed = roomy.post(TEXT, **options, stream=True)
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["param"] == "guided_grammar"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "color", "maxLength": 3},
        {"type": "string", "format": "phone", "maxLength": 3},
        {
            "type": "array",
            "items": {"type": "string", "format": "x", "maxLength": 1},
            "maxItems": 2,
        },
        an_object({"format": {"type": "string", "format": "y", "maxLength": 2}}),
        an_object({"a": {"const": {"format": "kept"}}}),
    ],
    ids=str,
)
def test_a_format_that_nobody_defines_is_a_note(roomy, schema):
    for asked in ({"guided_json": schema}, {"tools": [tool(an_object({"v": schema}))]}):
        answer = roomy.post(CHAT, **OPTIONS, **asked)
        assert answer.status_code == 200, answer.text
    (choice,) = roomy.post(CHAT, **OPTIONS, guided_json=schema).json()["choices"]
    if choice["finish_reason"] == "stop":
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    refused = roomy.post(CHAT, **OPTIONS, guided_json={"type": "string", "format": "idn-email"})
    assert refused.status_code == 400
