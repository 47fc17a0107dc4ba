"""What an answer thinks, told apart from what it says: whole, streamed, sent back, and in forms."""

from dataclasses import replace

import pytest

from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.grammars import behind_thought, grammar_of
from a2d_ray.serving.model.server import ModelServer
from tests.data.test_thoughts import QWEN3, R1
from tests.serving.in_process import Client
from tests.serving.test_tools import ONE, an_object, compiler, request, tool
from tests.tiny import tiny_tokenizer

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
BLOCK = "<think>\nR\n</think>\n\n"
FORCED = {"messages": [USER], "guided_regex": BLOCK + "hi", "max_tokens": 60}


def over(lm, template, **options):
    """A client of a server of the model with another template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    server = ModelServer(
        replace(lm, tokenizer=tokenizer), SamplingSection(max_new_tokens=12), **options
    )
    return server, Client(create_app({"tiny": server}))


@pytest.fixture(scope="module")
def clients(lm):
    made = {
        "chatml": over(lm, None),
        "off": over(lm, None, separate_reasoning=False),
        "r1": over(lm, R1),
        "qwen3": over(lm, QWEN3),
    }
    yield {name: client for name, (_, client) in made.items()}
    for server, _ in made.values():
        server.close()


def parts(client, **body):
    """Reasoning and content of an answer, which are the same in a stream."""
    answer = client.post(CHAT, **body)
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    found = message.get("reasoning_content"), message["content"]
    deltas = [chunk["choices"][0]["delta"] for chunk in client.events(CHAT, **body)]
    streamed = ["".join(d.get(key, "") for d in deltas) for key in ("reasoning_content", "content")]
    assert (streamed[0] or None, streamed[1]) == found
    assert not any("content" in d and "reasoning_content" in d for d in deltas)
    return found


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("chatml", {}, ("R", "hi")),
        ("chatml", {"separate_reasoning": True}, ("R", "hi")),
        ("chatml", {"separate_reasoning": False}, (None, BLOCK + "hi")),
        ("chatml", {"include_reasoning": False}, (None, "hi")),
        ("off", {}, (None, BLOCK + "hi")),
        ("off", {"separate_reasoning": True}, ("R", "hi")),
        ("off", {"include_reasoning": True}, (None, BLOCK + "hi")),
    ],
    ids=str,
)
def test_a_thought_stands_apart_as_the_server_and_the_request_say(clients, name, asked, expected):
    assert parts(clients[name], **FORCED, **asked) == expected


THOUGHT_TOKENS = len(BLOCK.rstrip())  # a byte is a token, the marks are counted


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("chatml", FORCED, THOUGHT_TOKENS),
        ("chatml", FORCED | {"n": 2}, 2 * THOUGHT_TOKENS),
        ("chatml", FORCED | {"include_reasoning": False}, THOUGHT_TOKENS),
        ("chatml", FORCED | {"stop": "R"}, len("<think>\n")),
        ("chatml", FORCED | {"guided_regex": "hi"}, 0),
        ("chatml", FORCED | {"guided_regex": "<think>é</think>hi"}, len("<think>é</think>") + 1),
        ("r1", {"messages": [USER], "max_tokens": 8, "ignore_eos": True}, 8),
        ("chatml", FORCED | {"separate_reasoning": False}, None),
        ("off", FORCED, None),
    ],
    ids=str,
)
def test_the_usage_counts_the_tokens_of_thoughts(clients, name, asked, expected):
    whole = clients[name].post(CHAT, **asked).json()["usage"]
    details = None if expected is None else {"reasoning_tokens": expected}
    assert whole.get("completion_tokens_details") == details
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = clients[name].events(CHAT, **asked, stream_options=options)
    streamed = [chunk["usage"].get("completion_tokens_details") for chunk in chunks]
    assert streamed[-1] == details
    counts = [each["reasoning_tokens"] for each in streamed if each]
    assert counts == sorted(counts)


def test_behind_an_open_block_all_is_thought_until_it_is_closed(clients):
    body = {"messages": [USER], "max_tokens": 8}
    _, text = parts(clients["r1"], **body, separate_reasoning=False, ignore_eos=True)
    assert parts(clients["r1"], **body, ignore_eos=True) == (text.strip(), "")
    begun = [USER, {"role": "assistant", "content": "R\n</think>\n\nso "}]
    continued = {"messages": begun, "continue_final_message": True, "guided_regex": "it is"}
    assert parts(clients["r1"], **body | continued) == (None, "it is")


def test_a_thought_that_goes_on_is_thought(clients):
    begun = {"role": "assistant", "content": "", "reasoning_content": "R"}
    body = {"messages": [USER, begun], "continue_final_message": True, "max_tokens": 8}
    for name in ("r1", "chatml"):
        reasoning, content = parts(clients[name], **body, ignore_eos=True)
        assert reasoning and not content


@pytest.mark.parametrize("name", ["chatml", "r1", "qwen3"])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_thought_sent_back_stands_where_it_was_written(clients, name, field):
    def tokens(answer):
        chat = [USER, {"role": "assistant"} | answer, USER]
        options = {"chat_template_kwargs": {"enable_thinking": True}} if name == "qwen3" else {}
        response = clients[name].post("/tokenize", messages=chat, **options)
        assert response.status_code == 200, response.text
        return response.json()["tokens"]

    whole = tokens({"content": BLOCK + "hi"})
    assert tokens({"content": "hi", field: "R"}) == whole
    assert tokens({"content": "hi", field: None}) == tokens({"content": "hi"}) != whole


def test_history_is_what_was_written_and_so_it_is_cached(clients):
    client = clients["chatml"]
    first = client.post(CHAT, **FORCED).json()
    message = first["choices"][0]["message"]
    second = client.post(CHAT, messages=[USER, message, USER], max_tokens=1).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["total_tokens"] - 4  # the last block may be too short


TWO_THOUGHTS = {
    "role": "assistant",
    "content": "a",
    "reasoning": "R",
    "reasoning_content": "S",
}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER | {"reasoning_content": "R"}]}, "messages"),
        ({"messages": [USER, TWO_THOUGHTS, USER]}, "messages"),
        (
            {"messages": [USER], "separate_reasoning": False, "include_reasoning": False},
            "include_reasoning",
        ),
        ({"messages": [USER], "separate_reasoning": "yes"}, "separate_reasoning"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(clients, body, param):
    answer = clients["chatml"].post(CHAT, **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(param)


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
FORMS = {
    "tools": (request([tool(an_object({"x": ONE}))], tool_choice="required"), CALL),
    "schema": (request(None, guided_json=an_object({"x": ONE})), '{"x":1}'),
    "regex": (request(None, guided_regex="ab+"), "abb"),
    "grammar": (request(None, guided_grammar='start: x\nx: "a"+'), "aa"),
}


def accepts(source, text):
    grammar = compiler().compile(source, "form")
    ids = tiny_tokenizer()(text, add_special_tokens=False).input_ids
    if not all(map(grammar.accept, ids)):
        return False
    allowed = grammar.allowed()
    return bool(allowed[2]) or not allowed.any()  # nothing: the text has to end here


@pytest.mark.parametrize("form", FORMS)
def test_a_form_stands_behind_the_thought(form):
    asked, text = FORMS[form]
    after = behind_thought(grammar_of(asked), is_open=True)
    maybe = behind_thought(grammar_of(asked), is_open=False)
    for thought in ("R\n</think>\n\n", "</think>", "a < b </thin\n{1}</think> "):
        assert accepts(after, thought + text)
        assert accepts(maybe, "<think>" + thought + text)
        assert not accepts(maybe, thought + text)
    assert accepts(maybe, text) and not accepts(after, text)
    assert not accepts(after, "R</think>S</think>" + text)
    assert not accepts(after, "R</think>")


def test_where_the_prompt_opens_a_thought_a_form_waits_for_its_end(clients):
    body = {"messages": [USER], "guided_regex": "hi", "max_tokens": 8}
    reasoning, content = parts(clients["r1"], **body)
    assert reasoning and not content  # a random model does not come to its end
    assert parts(clients["r1"], **body, separate_reasoning=False) == (None, "hi")
    assert parts(clients["qwen3"], **body) == (None, "hi")
