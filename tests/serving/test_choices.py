"""n, seeds, log-probabilities, forms, tools: against the Python API or a validator."""

import copy
import json
import math
from dataclasses import replace

import pytest

from a2d_ray import SamplingParams
from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from tests.closeness import assert_close
from tests.serving.in_process import Client

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "2+2?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "boolean"}, "y": {"enum": [1, 2, 3]}},
                "required": ["x", "y"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "subtract")
]


def test_n_answers_are_those_of_the_python_api_and_stream_alike(client, lm):
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 10, "ignore_eos": True}
    body = client.post(CHAT, messages=MESSAGES, n=3, **options).json()
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    params = SamplingParams(temperature=1.0, seed=7, max_new_tokens=10, ignore_eos=True, n=3)
    assert texts == [answer.text for answer in lm.generate([MESSAGES], params)]
    num_prompt = sum(map(len, lm.encode(MESSAGES)))
    assert body["usage"]["prompt_tokens"] == num_prompt  # once, not three times
    assert body["usage"]["completion_tokens"] == 30
    chunks = client.events(CHAT, messages=MESSAGES, n=3, **options)
    for index, text in enumerate(texts):
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == index]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta.get("content") or "" for delta in deltas) == text
    prompts = client.post(TEXT, prompt=["a", "b"], n=2, **options).json()["choices"]
    assert [choice["index"] for choice in prompts] == [0, 1, 2, 3]


@pytest.mark.parametrize("stop", [None, ["e", "o", "a"]])
def test_logprobs_are_those_of_the_answers_tokens(client, stop):
    options = {"max_tokens": 12, "ignore_eos": True, "stop": stop}
    whole = client.post(TEXT, prompt="abc", logprobs=2, **options).json()["choices"][0]
    columns = whole["logprobs"]
    greedy = [max(top.values()) for top in columns["top_logprobs"]]
    assert columns["token_logprobs"] == pytest.approx(greedy)  # temperature 0
    assert all(sum(map(math.exp, top.values())) <= 1 + 1e-5 for top in columns["top_logprobs"])
    offsets = columns["text_offset"]
    assert offsets == sorted(offsets) and offsets[0] == 0
    assert all(
        whole["text"].startswith(token, offset) or token.startswith(("bytes:", "<|", "token_id:"))
        for token, offset in zip(columns["tokens"], offsets, strict=True)
        if offset < len(whole["text"])
    )
    chunks = client.events(TEXT, prompt="abc", logprobs=2, **options)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    joined = {column: [value for part in parts for value in part[column]] for column in columns}
    assert all(joined[column] == columns[column] for column in ("tokens", "text_offset"))
    assert_close(joined["token_logprobs"], columns["token_logprobs"])
    for ours, theirs in zip(joined["top_logprobs"], columns["top_logprobs"], strict=True):
        assert_close(ours, theirs)


def test_chat_logprobs_have_the_confidence_of_the_commitment(client):
    options = {"messages": MESSAGES, "max_tokens": 8, "ignore_eos": True}
    body = client.post(CHAT, **options, logprobs=True, top_logprobs=3).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == body["usage"]["completion_tokens"] == 8
    assert all(len(entry["top_logprobs"]) == 3 for entry in content)
    assert all(entry["logprob"] == entry["top_logprobs"][0]["logprob"] for entry in content)
    assert client.post(CHAT, **options).json()["choices"][0]["logprobs"] is None


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_under_a_schema_is_valid(roomy, seed, stream):
    """A random model at temperature 1: only the grammar can make this JSON."""
    import jsonschema

    options = {"messages": MESSAGES, "response_format": form(SCHEMA), "logit_bias": {"2": 5}}
    options |= {"temperature": 1.0, "seed": seed}
    if stream:
        chunks = roomy.events(CHAT, **options)
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = roomy.post(CHAT, **options).json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    if reason == "stop":
        jsonschema.validate(json.loads(text), SCHEMA)
    else:  # cut off by its length: a beginning of such a text
        assert reason == "length" and text.startswith('{"name":"')


def test_regular_expressions_and_grammars(roomy):
    regex = {"type": "regex", "regex": "(yes|no), [0-9]{3}"}
    answers = roomy.post(CHAT, messages=MESSAGES, response_format=regex, temperature=1.0, n=4)
    texts = {choice["message"]["content"] for choice in answers.json()["choices"]}
    assert all(text[:-5] in ("yes", "no") and text[-3:].isdecimal() for text in texts)
    lark = {"type": "grammar", "grammar": 'start: "(" start ")" | "x"'}
    (choice,) = roomy.post(TEXT, prompt="a", response_format=lark, logit_bias={"90": 3}).json()[
        "choices"
    ]
    inner = choice["text"].strip("()")
    assert inner in ("x", "") and choice["text"].count("(") >= choice["text"].count(")")


@pytest.mark.parametrize(
    ("wanted", "kind", "value"),
    [
        (form(SCHEMA), "json", SCHEMA),
        (form(SCHEMA), "json", json.dumps(SCHEMA)),
        ({"type": "regex", "regex": "(yes|no)!"}, "regex", "(yes|no)!"),
        ({"type": "regex", "regex": "yes|no"}, "choice", ["yes", "no"]),
        ({"type": "grammar", "grammar": 'start: "x"'}, "grammar", 'start: "x"'),
    ],
)
def test_vllms_names_of_forms_are_those_of_response_format(roomy, wanted, kind, value):
    options = {"prompt": "a", "temperature": 1.0, "seed": 5, "max_tokens": 60}
    fields = {"response_format": wanted}, {"structured_outputs": {kind: value}}
    answers = [
        roomy.post(TEXT, **options, **field).json()["choices"]
        for field in (*fields, {f"guided_{kind}": value})
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != roomy.post(TEXT, **options).json()["choices"]


def test_an_answer_is_one_of_the_choices_letter_by_letter(roomy):
    choices = ['say "x"', "back\\slash", "line\nbreak", "héllo 你", "/a|b/i", "{}%"]
    options = {"messages": MESSAGES, "temperature": 1.0, "n": 16, "guided_choice": choices}
    answers = roomy.post(CHAT, **options).json()["choices"]
    texts = {answer["message"]["content"] for answer in answers}
    assert texts <= set(choices) and len(texts) > 1
    for choice in choices:
        (only,) = roomy.post(CHAT, messages=MESSAGES, guided_choice=[choice]).json()["choices"]
        assert only["message"]["content"] == choice


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "5"}, "guided_json"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
        ({"guided_regex": "a", "response_format": form(SCHEMA)}, "guided_regex"),
        ({"guided_regex": "a", "tools": TOOLS}, "guided_regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
        ({"response_format": form({"type": "objekt"})}, "response_format"),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "start: nothing"}}, "response_format"),
        ({"response_format": form(SCHEMA), "diffusion": {"rule": "steps"}}, "diffusion.rule"),
        ({"tools": TOOLS, "response_format": form(SCHEMA)}, "response_format"),
    ],
)
def test_a_form_that_cannot_be_kept_is_a_400(roomy, options, param):
    answer = roomy.post(CHAT, messages=MESSAGES, **options)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_too_complex_for_its_matcher_is_refused(client, server, stream):
    """It gives up behind the x: the text so far is no text of the grammar."""
    rules = [f"e{i}: e{i + 1} | C e{i + 1}" for i in range(2100)]
    grammar = "\n".join(["start: A e0", *rules, "e2100: C", 'A: "x"', 'C: "y"'])
    form = {"type": "grammar", "grammar": grammar}
    answer = client.post(CHAT, messages=MESSAGES, response_format=form, stream=stream)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "response_format"
    assert "max is 2000" in answer.json()["error"]["message"]
    assert server._engine._engine.num_used_kv_tokens == 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_required_call_is_a_call(roomy, choice):
    options = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "temperature": 1.0}
    options["parallel_tool_calls"] = False
    for seed in range(3):
        (answer,) = roomy.post(CHAT, **options, seed=seed).json()["choices"]
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] is None
        (call,) = answer["message"]["tool_calls"]
        names = ("add",) if isinstance(choice, dict) else ("add", "subtract")
        assert call["function"]["name"] in names
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == {"x", "y"} and arguments["y"] in (1, 2, 3)
        chunks = roomy.events(CHAT, **options, seed=seed)
        calls = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", [])]
        assert [each["function"] for each in calls] == [call["function"]]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_with_free_choice_an_answer_is_a_call_or_text(roomy):
    options = {"messages": MESSAGES, "tools": TOOLS, "temperature": 1.0, "max_tokens": 60}
    for seed in range(4):
        (answer,) = roomy.post(CHAT, **options, seed=seed).json()["choices"]
        text = answer["message"]["content"]
        assert ("tool_calls" in answer["message"]) != bool(text)
        chunks = roomy.events(CHAT, **options, seed=seed)
        streamed = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        assert streamed == (text or "")


@pytest.mark.parametrize("keeps_stop", [False, True])
def test_what_ended_an_answer_is_named_and_may_be_kept(client, lm, keeps_stop):
    options = {"prompt": "abc", "max_tokens": 30, "ignore_eos": True}
    whole = client.post(TEXT, **options).json()["choices"][0]
    assert (whole["finish_reason"], whole["stop_reason"]) == ("length", None)
    stop = whole["text"][7:9]
    wanted = whole["text"][: whole["text"].index(stop)] + stop * keeps_stop
    options |= {"stop": ["never", stop], "include_stop_str_in_output": keeps_stop}
    (choice,) = client.post(TEXT, **options).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (wanted, "stop")
    assert choice["stop_reason"] == stop
    choices = [chunk["choices"][0] for chunk in client.events(TEXT, **options)]
    assert "".join(choice["text"] for choice in choices) == wanted
    assert [choice["stop_reason"] for choice in choices] == [None] * (len(choices) - 1) + [stop]


def test_a_stop_token_is_named_and_the_end_of_turn_is_not(client, lm):
    options = {"messages": MESSAGES, "max_tokens": 30}
    (found,) = lm.generate([MESSAGES], SamplingParams(max_new_tokens=30, ignore_eos=True))
    token = found.token_ids[4]
    options |= {"stop_token_ids": [token], "ignore_eos": True}
    (choice,) = client.post(CHAT, **options).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)
    last = client.events(CHAT, **options)[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", token)
    bias = {str(lm.tokenizer.eos_token_id): 100}
    (choice,) = client.post(CHAT, messages=MESSAGES, logit_bias=bias).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)


def test_tokens_and_text_are_inverses(client, lm):
    text = "héllo <|im_end|> \u4f60"
    body = client.post("/tokenize", prompt=text).json()
    assert body["tokens"] == list(lm.tokenizer(text).input_ids)
    assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), 512)
    assert client.post("/detokenize", tokens=body["tokens"]).json() == {"prompt": text}
    chat = client.post("/tokenize", messages=MESSAGES).json()
    assert chat["tokens"] == [token for segment in lm.encode(MESSAGES) for token in segment]
    refused = client.post("/detokenize", tokens=[5, 10**9])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens[1]")
    assert client.post("/tokenize", prompt="a", messages=MESSAGES).status_code == 400


@pytest.fixture
def thinking(lm):
    """The tiny model with a template that knows of thinking."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template += (
        "{% if add_generation_prompt and enable_thinking is false %}{{ '<think>' }}{% endif %}"
    )
    server = ModelServer(replace(lm, tokenizer=tokenizer), SamplingSection(max_new_tokens=4))
    yield Client(create_app({"tiny": server}))
    server.close()


def test_template_options_and_tools_are_rendered_as_tokenize_says(thinking):
    bodies = [
        {
            "messages": MESSAGES,
            **({} if think is None else {"chat_template_kwargs": think}),
            **tools,
        }
        for think in (None, {"enable_thinking": False}, {"enable_thinking": True})
        for tools in ({}, {"tools": TOOLS[:1]})
    ]
    tokens = [thinking.post("/tokenize", **body).json() for body in bodies]
    for body, found in zip(bodies[::2], tokens[::2], strict=True):
        usage = thinking.post(CHAT, **body).json()["usage"]
        assert usage["prompt_tokens"] == found["count"]
    off, off_tools, same, same_tools, on, on_tools = (found["tokens"] for found in tokens)
    assert (off, off_tools) == (same, same_tools)
    assert off == [*on, *tokens_of(thinking, "<think>")]
    assert off_tools == [*on_tools, *tokens_of(thinking, "<think>")]
    text = thinking.post("/detokenize", tokens=on_tools).json()["prompt"]
    assert '"name": "add"' in text and "<|im_start|>system" in text


def tokens_of(client, text: str) -> list[int]:
    return client.post("/tokenize", prompt=text).json()["tokens"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"enable_thinkin": True}, "chat_template_kwargs"),
        ({"chat_template": "x"}, "chat_template_kwargs"),
        ({"enable_thinking": {}}, "chat_template_kwargs"),
        ("enable_thinking", "chat_template_kwargs"),
    ],
)
def test_template_options_that_nobody_reads_are_refused(thinking, options, param):
    for path in (CHAT, "/tokenize"):
        answer = thinking.post(path, messages=MESSAGES, chat_template_kwargs=options)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    answer = thinking.post("/tokenize", prompt="a", chat_template_kwargs={"enable_thinking": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("mode", ["prefix", "block", "denoise"])
def test_every_stream_mode_joins_to_the_whole_text(client, mode):
    options = {"prompt": "abc", "max_tokens": 22, "ignore_eos": True}
    whole = client.post(TEXT, **options).json()["choices"][0]["text"]
    chunks = client.events(TEXT, **options, diffusion={"stream_mode": mode})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole
    canvases = [c["diffusion"] for c in choices if "diffusion" in c]
    if mode == "block":
        assert len(choices) == math.ceil(22 / 4)
    if mode != "denoise":
        assert not canvases
        return
    assert all(c["replace"] is True for c in canvases)
    steps = [c["denoise_steps"] for c in canvases]
    assert steps == sorted(steps)
    assert all(len(c["canvas"]) <= 4 for c in canvases)
    shown = [slot for c in canvases for slot in c["canvas"] if slot is not None]
    assert shown and all(0 < slot["confidence"] <= 1 for slot in shown)
