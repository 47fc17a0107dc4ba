"""Tools: what their schemas refer to, several calls, one spelling; forms that nothing fulfils."""

import functools
import json

import pytest

from a2d_ray.serving.model.grammars import GrammarCompiler, grammar_of
from a2d_ray.serving.openai.chat_protocol import ChatCompletionRequest
from a2d_ray.serving.openai.formats import ChatFormat
from a2d_ray.serving.openai.pieces import Counts, Piece
from a2d_ray.serving.openai.structured import ToolCall, describe_tools, parse_calls
from tests.tiny import tiny_tokenizer

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


@functools.cache
def compiler():
    return GrammarCompiler(tiny_tokenizer(), 320, {2})


def request(tools, **fields):
    values = {"model": "tiny", "messages": [USER], "tools": tools, **fields}
    return ChatCompletionRequest.model_validate(values)


def is_allowed(asked, text):
    """Whether an answer may be this text, as a whole."""
    grammar = compiler().compile(grammar_of(asked), "tools")
    for token in tiny_tokenizer()(text, add_special_tokens=False).input_ids:
        if not grammar.accept(token):
            return False
    allowed = grammar.allowed()
    return not allowed.any() or bool(allowed[2])


def call(arguments, name="f"):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return ToolCall.model_validate({"function": function}).to_text()


VALID = {
    "defs": ({"item": 1}, {"item": 2}),
    "definitions": ({"item": 1}, {"item": 2}),
    "property": ({"a": 1, "b": 1}, {"a": 1, "b": 2}),
    "a name with signs": ({"item": 1}, {"item": 2}),
    "root": ({"item": 1}, {"item": 2}),
    "one through another": ({"item": 1}, {"item": 2}),
    "nullable": ({"item": None}, {"item": 2}),
    "recursion": ({"node": {"next": {"next": {"next": 1}}}}, {"node": {"next": {"next": 2}}}),
    "recursion of the root": (
        {"children": [{"children": []}, {"children": []}]},
        {"children": [1]},
    ),
    "id": ({"x": 1}, {"x": 2}),
    "anchor": ({"x": 1}, {"x": 2}),
}


@pytest.mark.parametrize("choice", ["required", "auto", "named"])
@pytest.mark.parametrize("kind", REFERRING)
def test_references_in_parameters_point_at_what_they_meant(kind, choice):
    named = {"type": "function", "function": {"name": "f"}}
    asked = request([tool(REFERRING[kind])], tool_choice=named if choice == "named" else choice)
    valid, invalid = VALID[kind]
    assert is_allowed(asked, call(valid))
    assert not is_allowed(asked, call(invalid))
    assert is_allowed(asked, "text") is (choice == "auto")


def test_references_are_kept_over_http(client):
    """The tiny model has no room for an answer, but for a refusal."""
    for parameters in REFERRING.values():
        options = {"tools": [tool(parameters)], "tool_choice": "required", "max_tokens": 1}
        answer = client.post(CHAT, messages=[USER], **options)
        assert answer.status_code == 200 or "exceed" in answer.text, answer.text


def test_tools_whose_definitions_have_one_name_keep_their_own():
    tools = [
        tool(an_object({"x": {"$ref": "#/$defs/Item"}}, **{"$defs": {"Item": item}}), name)
        for name, item in (("one", ONE), ("two", TWO))
    ]
    asked = request(tools, tool_choice="required")
    for name, value, is_valid in (("one", 1, True), ("one", 2, False), ("two", 22, True)):
        assert is_allowed(asked, call({"x": value}, name)) is is_valid
    assert not is_allowed(asked, call({"x": 1}, "two"))


SWITCH = tool(an_object({"on": {"type": "boolean"}}), "switch")
ON, OFF = call({"on": True}, "switch"), call({"on": False}, "switch")


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("choice", ["required", "auto", "named"])
def test_parallel_tool_calls_are_several_or_one(asked, choice):
    named = {"type": "function", "function": {"name": "switch"}}
    fields = {"tool_choice": named if choice == "named" else choice, "parallel_tool_calls": asked}
    wanted = request([SWITCH], **fields)
    assert is_allowed(wanted, ON)
    is_one = asked is False or choice == "named"
    assert is_allowed(wanted, f"{ON}\n{OFF}\n{ON}") is not is_one
    assert not is_allowed(wanted, f"{ON}\n")


@pytest.mark.parametrize("texts", [[ON], [f"{ON}\n{OFF}"], list(f"{ON}\n{OFF}\n{ON}")])
def test_calls_are_read_out_of_an_answer_whole_and_streamed(texts):
    counts = Counts(num_prompt_tokens=1)
    pieces = [Piece(index=0, text=text, finish_reason=None, counts=counts) for text in texts]
    pieces.append(Piece(index=0, text="", finish_reason="stop", counts=counts))
    (choice,) = ChatFormat("tiny", has_tools=True).whole([pieces]).choices
    wanted = [json.loads(line)["arguments"] for line in "".join(texts).split("\n") if "{" in line]
    assert [json.loads(c.function.arguments) for c in choice.message.tool_calls] == wanted
    assert choice.message.content is None and choice.finish_reason == "tool_calls"
    form = ChatFormat("tiny", has_tools=True)
    chunks = [chunk.model_dump() for piece in pieces for chunk in form.chunks(piece)]
    streamed = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [json.loads(each["function"]["arguments"]) for each in streamed] == wanted
    assert [each["index"] for each in streamed] == list(range(len(wanted)))
    assert len({each["id"] for each in streamed}) == len(wanted)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"on": True},
        {"a": [1, 2.5, {"b": None}], "c": "x, y: z"},
        {"quote": 'a "b" \\', "é漢🙂": "é\n\t"},
    ],
    ids=str,
)
def test_calls_have_the_spelling_that_models_are_trained_on(arguments):
    """Instruction, grammar, answer and history: json.dumps as Hermes and Qwen use it."""
    written = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=False)
    text = f"<tool_call>\n{written}\n</tool_call>"
    assert is_allowed(request([tool({})], tool_choice="required"), text)
    compact = json.dumps(arguments, separators=(",", ":"))
    for sent in (arguments, json.dumps(arguments), compact, json.dumps(arguments, indent=2)):
        history = ToolCall.model_validate({"function": {"name": "f", "arguments": sent}})
        assert history.to_text() == text
    assert parse_calls(text) == [("f", json.dumps(arguments, ensure_ascii=False))]
    assert '{"name": <function-name>, "arguments": <args-json-object>}' in describe_tools([])


@pytest.mark.parametrize("arguments", ['{"a": 1e5}', '{"a": 1.0}', '{"a": "\\/"}'])
def test_values_stay_as_the_model_spelled_them(arguments):
    history = ToolCall.model_validate({"function": {"name": "f", "arguments": arguments}})
    assert parse_calls(history.to_text()) == [("f", arguments)]


def assembled(chunks):
    """The message as clients put it together from a stream."""
    message = {"role": "assistant", "content": None, "tool_calls": []}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        message["content"] = (message["content"] or "") + (delta.get("content") or "")
        message["tool_calls"] += delta.get("tool_calls", [])
    return message


PARAMETERS = an_object({"on": {"type": "boolean"}, "at": TWO})


@pytest.mark.parametrize("stream", [False, True])
def test_history_is_what_was_written(roomy, stream):
    """The call that is sent back is, token by token, the answer that it was."""
    tools = [tool(PARAMETERS, "switch")]
    options = OPTIONS | {"tools": tools, "tool_choice": "required", "seed": 1}
    options |= {"parallel_tool_calls": False, "logprobs": True}
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
    assert reason == "tool_calls"
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


NEXT = {"N": an_object({"next": {"$ref": "#/$defs/N"}})}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/N", "$defs": NEXT},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        an_object({"a": {"$ref": "#"}}),
    ],
    ids=str,
)
def test_a_recursion_that_nothing_ends_is_called_so(client, schema):
    refused = client.post(CHAT, messages=[USER], guided_json=schema).json()["error"]
    assert refused["param"] == "guided_json"
    assert "a recursion that nothing ends" in refused["message"]
    assert "50,000 items" in refused["message"]


@pytest.mark.parametrize("schema", ["[" * 3_000, '{"not": ' * 101 + "{}" + "}" * 101])
def test_a_schema_as_text_that_is_nested_too_deep_is_a_400(client, schema):
    refused = client.post(CHAT, messages=[USER], guided_json=schema)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guided_json")


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"$dynamicRef": "#x"}, 'Unimplemented keys: ["$dynamicRef"]'),
        ({"$ref": "#/$defs/none"}, "Pointer '/$defs/none' does not exist"),
        (an_object({"a": {"pattern": "^(?!a)b"}}), "look-around"),
    ],
    ids=str,
)
def test_a_schema_that_is_not_kept_is_named_by_its_tool(roomy, parameters, reason, place):
    tools = [tool(an_object({"x": ONE}), name) for name in "abc"]
    tools[place]["function"]["parameters"] = parameters
    refused = roomy.post(CHAT, messages=[USER], tools=tools, max_tokens=1).json()["error"]
    assert refused["param"] == "tools" and reason in refused["message"]
    assert refused["message"].startswith(f"tools[{place}].function.parameters: ")
    assert "TEXT:" not in refused["message"]  # the grammar around it


def test_a_grammar_that_ends_nowhere_behind_text_is_an_event_of_its_stream(roomy):
    """The x is out when it turns out that nothing can follow."""
    options = {"prompt": "a", "guided_grammar": 'start: "xxxxxx" a\na: a "b"'}
    whole = roomy.post(TEXT, **options)
    assert (whole.status_code, whole.json()["error"]["param"]) == (400, "guided_grammar")
    streamed = roomy.post(TEXT, **options, stream=True)
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["param"] == "guided_grammar"


NOTED = {"type": "string", "format": "color"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (an_object({"a": NOTED}), {"a": "red"}),
        (an_object({"a": {"type": "array", "items": NOTED}}), {"a": ["red"]}),
        (an_object({"format": NOTED}), {"format": "red"}),
        (an_object({"a": {"const": {"format": "kept"}}}), {"a": {"format": "kept"}}),
        (an_object({"a": {"$ref": "#/$defs/format"}}, **{"$defs": {"format": NOTED}}), {"a": "b"}),
        (an_object({"a": {"anyOf": [NOTED, {"type": "null"}]}}), {"a": None}),
    ],
    ids=str,
)
def test_a_format_that_nobody_defines_is_a_note(schema, value):
    form = request(None, guided_json=schema)
    assert is_allowed(form, json.dumps(value, separators=(",", ":")))
    assert is_allowed(request([tool(schema)]), call(value))


def test_a_format_that_json_schema_defines_is_kept_or_refused(client):
    date = request(None, guided_json={"type": "string", "format": "date"})
    assert is_allowed(date, '"2024-02-29"') and not is_allowed(date, '"x"')
    schema = {"type": "string", "format": "idn-email"}
    refused = client.post(CHAT, messages=[USER], guided_json=schema)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guided_json")


TWO_CALLS = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>\n{"na'


def test_of_an_answer_cut_by_its_length_the_whole_calls_are_calls():
    counts = Counts(num_prompt_tokens=1)
    for text, expected in ((TWO_CALLS, ["f"]), (TWO_CALLS[:-8], ["f"]), (TWO_CALLS[:40], [])):
        pieces = [
            Piece(index=0, text=text[:20], finish_reason=None, counts=counts),
            Piece(index=0, text=text[20:], finish_reason="length", counts=counts),
        ]
        (choice,) = ChatFormat("tiny", has_tools=True).whole([pieces]).choices
        form = ChatFormat("tiny", has_tools=True)
        chunks = [c.choices[0] for piece in pieces for c in form.chunks(piece)]
        streamed = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        for calls in (choice.message.tool_calls or [], streamed):
            assert [call.function.name for call in calls] == expected
        assert choice.finish_reason == chunks[-1].finish_reason == "length"
        assert choice.message.content == (None if expected else text)
