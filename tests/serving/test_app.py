"""The endpoints over a real engine: streams, sharing, errors, clients that leave."""

import asyncio
import json
import re
import threading
from dataclasses import replace

import pytest

from a2d_ray import SamplingParams, __version__, load
from a2d_ray.config import RULES, LimitsSection, SamplingSection
from a2d_ray.generation.engine.sequence import Sequence
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from a2d_ray.text.stream import decode
from tests.serving.in_process import Client, wait_in_a_round

MESSAGES = [{"role": "user", "content": "2+2?"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def chat_text(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_a_chat_answer_is_what_the_python_api_says(client, lm):
    body = client.post(CHAT, messages=MESSAGES, max_tokens=10).json()
    (wanted,) = lm.generate([MESSAGES], SamplingParams(max_new_tokens=10))
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert choice["finish_reason"] == wanted.finish_reason
    usage = body["usage"]
    num_prompt = sum(map(len, lm.encode(MESSAGES)))
    assert usage["prompt_tokens"] == num_prompt
    assert usage["completion_tokens"] == len(wanted.token_ids)
    assert usage["total_tokens"] == num_prompt + len(wanted.token_ids)
    assert usage["diffusion"]["forwards"] == wanted.num_forwards


@pytest.mark.parametrize("stop", [None, ["e"], ["a", "\ufffd", "o"]])
def test_a_streamed_chat_joins_to_the_whole_answer(client, stop):
    options = {"messages": MESSAGES, "max_tokens": 40, "stop": stop, "ignore_eos": True}
    whole = client.post(CHAT, **options).json()
    *chunks, usage = client.events(CHAT, **options, stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
    assert usage["choices"] == []
    assert whole["usage"].pop("prompt_tokens_details") == {"cached_tokens": 0}
    assert usage["usage"].pop("prompt_tokens_details")["cached_tokens"] > 0
    assert usage["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_text_arrives_before_the_answer_is_complete(client):
    chunks = client.events(CHAT, messages=MESSAGES, max_tokens=40, ignore_eos=True)
    assert sum("content" in chunk["choices"][0]["delta"] for chunk in chunks) > 5


def test_completions_of_several_prompts_are_those_of_each_alone(client, lm):
    prompts = ["abc", "", "xyz" * 5]
    body = client.post(TEXT, prompt=prompts, max_tokens=9, echo=True).json()
    wanted = lm.generate(prompts, SamplingParams(max_new_tokens=9))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == [p + w.text for p, w in zip(prompts, wanted, strict=True)]
    assert body["usage"]["completion_tokens"] == sum(len(w.token_ids) for w in wanted)
    chunks = client.events(TEXT, prompt=prompts, max_tokens=9, echo=True)
    for index, text in enumerate(texts):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in choices) == text


def test_token_ids_are_prompts_too(client, lm):
    ids = lm.tokenizer("abc").input_ids
    options = {"max_tokens": 9, "echo": True}
    answers = [client.post(TEXT, prompt=prompt, **options).json() for prompt in ("abc", ids, [ids])]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert answers[0]["choices"][0]["text"].startswith(decode(lm.tokenizer, ids))


def test_parallel_requests_get_the_answers_they_get_alone(client, server):
    bodies = [
        {
            "messages": [{"role": "user", "content": "x" * i}],
            "max_tokens": 6 + 5 * i,
            "temperature": float(i % 2),
            "seed": i,
        }
        for i in range(8)
    ]
    alone = [chat_text(client.post(CHAT, **body)) for body in bodies]

    async def ask_all(http):
        posts = (http.post(CHAT, json={"model": "tiny", **body}) for body in bodies)
        return await asyncio.gather(*posts)

    num_rounds = count_rounds(server)
    wait_in_a_round(server, len(bodies))
    together = [chat_text(response) for response in client.run(ask_all)]
    assert together == alone
    assert num_rounds() < sum(6 + 5 * i for i in range(8)) / 2  # they shared rounds


def count_rounds(server):
    engine, rounds = server._engine._engine, []
    step = engine.step
    engine.step = lambda: rounds.append(1) or step()
    return lambda: len(rounds)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_request(server, stream):
    """Speaks ASGI itself: httpx's in-process transport cannot hang up.

    The engine's second round waits until the application is done with the client that left.
    """
    engine, app = server._engine._engine, create_app({"tiny": server})
    has_begun, has_left = threading.Event(), threading.Event()
    num_rounds = count_rounds(server)
    step = engine.step

    def held_step():
        if num_rounds():
            has_begun.set()
            has_left.wait()
        return step()

    engine.step = held_step
    body = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_tokens": 400,
        "ignore_eos": True,
        "diffusion": {"rule": "steps"},
        "stream": stream,
    }
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.to_thread(has_begun.wait)
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    async def main():
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"}}
        await asyncio.wait_for(app(scope, receive, send), timeout=60)

    try:
        asyncio.run(main())
    finally:
        has_left.set()
    server.close()  # behind the round that is under way
    assert not engine.has_unfinished()
    assert num_rounds() == 2


def error_of(response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_errors_have_openais_form(client):
    assert error_of(client.post(CHAT, messages=MESSAGES, n=0), 400)["param"] == "n"
    error = error_of(client.post(CHAT, messages=MESSAGES, model="gpt-9"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    error_of(client.get("/v1/models/gpt-9"), 404)
    error_of(client.get("/v2/nothing"), 404)
    error_of(client.get(CHAT), 405)
    post = client.run(
        lambda http: http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    )
    assert error_of(post, 400)["code"] == "invalid_json"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_cannot_do_is_a_400_that_names_the_field(client, stream):
    long = [{"role": "user", "content": "x" * 600}]
    error = error_of(client.post(CHAT, messages=long, stream=stream), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    error = error_of(client.post(TEXT, prompt="x" * 500, max_tokens=50, stream=stream), 400)
    assert error["param"] == "prompt"
    assert "max_tokens=50 " in error["message"]
    error = error_of(client.post(TEXT, prompt=[5, 10**6], stream=stream), 400)
    assert (error["param"], error["code"]) == ("prompt", "invalid_value")  # it is not too long


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("most", [None, 50])
def test_too_long_an_answer_is_refused_in_the_client_s_own_name(lm, name, most):
    server = ModelServer(lm, limits=LimitsSection(max_new_tokens=most))
    client = Client(create_app({"tiny": server}))
    error = error_of(client.post(CHAT, messages=MESSAGES, **{name: 10**6}), 400)
    assert error["param"] == name
    assert error["message"].startswith(f"{name} (1000000 tokens)")
    error = error_of(client.post(CHAT, messages=MESSAGES, **{name: 511}), 400)
    assert re.search(rf"{name}\W*511\b", error["message"])
    server.close()


def test_an_answer_of_unnamed_length_takes_the_room_there_is(client):
    body = client.post(TEXT, prompt="x" * 505, ignore_eos=True).json()
    assert body["usage"]["completion_tokens"] == 512 - 505


def test_a_large_body_is_refused(server):
    client = Client(create_app({"tiny": server}, limits=LimitsSection(max_body_bytes=1024)))
    assert error_of(client.post(TEXT, prompt="x" * 1024), 413)["code"] == "body_too_large"
    assert client.post(TEXT, prompt="x" * 100).status_code == 200


def test_models_and_health(server):
    client = Client(create_app({"tiny": server, "org/tiny": server}))
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny", "org/tiny"]
    card = client.get("/v1/models/org/tiny").json()
    assert (card["object"], card["max_model_len"]) == ("model", 512)
    assert card["diffusion"]["objective"] == "bd3lm" and card["diffusion"]["block_size"] == 4
    assert card["diffusion"]["rules"] == list(RULES)
    steps = card["diffusion"]["options"]["steps"]
    assert (steps["rules"], steps["default"]) == (["steps"], None)
    assert {"type": "integer", "minimum": 1, "maximum": 65_536} in steps["anyOf"]
    assert client.get("/health").json() == client.get("/ping").json() == {"status": "ok"}
    assert client.get("/version").json() == {"version": __version__}


def test_requests_without_a_seed_differ_but_repeat_after_a_restart(lm):
    def answers() -> list[str]:
        server = ModelServer(lm)
        client = Client(create_app({"tiny": server}))
        options = {"messages": MESSAGES, "temperature": 1.0, "max_tokens": 12}
        texts = [chat_text(client.post(CHAT, **options)) for _ in range(2)]
        server.close()
        return texts

    first, second = answers()
    assert first != second
    assert answers() == [first, second]


def test_replicas_draw_apart_and_a_seed_draws_alike_on_all(lm):
    servers = [ModelServer(lm, replica=name) for name in ("one", "two")]
    clients = [Client(create_app({"tiny": server})) for server in servers]

    def answers(**seed) -> list[str]:
        options = {"messages": MESSAGES, "temperature": 1.0, "max_tokens": 12, "ignore_eos": True}
        return [chat_text(client.post(CHAT, **options, **seed)) for client in clients]

    assert len({*answers(), *answers()}) == 4
    assert len({*answers(seed=7), *answers(seed=7)}) == 1
    for server in servers:
        server.close()


def test_a_model_s_own_number_of_answers_is_what_a_request_leaves_out(lm):
    server = ModelServer(lm, SamplingSection(n=2, max_new_tokens=4))
    client = Client(create_app({"tiny": server}))
    for asked, wanted in (({}, 2), ({"n": 1}, 1), ({"n": 3}, 3)):
        assert len(client.post(CHAT, messages=MESSAGES, **asked).json()["choices"]) == wanted
    assert client.post("/v1/infill", prefix="a").status_code == 200  # one answer, as ever
    server.close()


@pytest.mark.filterwarnings("default")
def test_a_dead_engine_fails_those_who_wait_and_the_health_check(client, server):
    def broken_step():
        raise RuntimeError("out of luck")

    server._engine._engine.step = broken_step
    error = error_of(client.post(CHAT, messages=MESSAGES), 503)
    assert "out of luck" in error["message"]
    error_of(client.post(CHAT, messages=MESSAGES), 503)
    error_of(client.get("/health"), 503)
    error_of(client.get("/ping"), 503)


def test_an_engine_that_dies_in_mid_stream_says_so(client, server):
    engine = server._engine._engine
    step, left = engine.step, [1] * 12

    def failing_step():
        left.pop()
        return step()

    engine.step = failing_step
    response = client.post(CHAT, messages=MESSAGES, max_tokens=40, ignore_eos=True, stream=True)
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_raises_for_one_request_fails_that_request_alone(client, server, stream):
    """A 500 for its client; its neighbour's answer is whole, and health stays good."""
    commit = Sequence.commit

    def poisoned(sequence, logits):
        if sequence.request.params.seed == 666:
            raise RuntimeError("poison")
        return commit(sequence, logits)

    bodies = [{"model": "tiny", "prompt": "a", "max_tokens": 20, "ignore_eos": True}] * 2
    bodies += [bodies[0] | {"seed": 666, "stream": stream}]

    async def ask_all(http):
        return await asyncio.gather(*(http.post(TEXT, json=body) for body in bodies))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sequence, "commit", poisoned)
        *good, bad = client.run(ask_all)
    assert [answer.json()["usage"]["completion_tokens"] for answer in good] == [20, 20]
    error = error_of(bad, 500)
    assert (error["type"], error["code"]) == ("server_error", "generation_failed")
    assert "poison" in error["message"]
    assert client.get("/health").status_code == 200
    assert server._engine._engine.num_used_kv_tokens == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": "a", "temperature": -1e-40}, "temperature"),
        (TEXT, {"prompt": "a", "repetition_penalty": 1e-40}, "repetition_penalty"),
        (TEXT, {"prompt": "a", "diffusion": {"steps": 10**12}}, "diffusion.steps"),
        (TEXT, {"prompt": "a", "diffusion": {"block_size": 10**12}}, "diffusion.block_size"),
        ("/v1/infill", {"prefix": "a", "temperature": 1e40}, "temperature"),
        ("/v1/infill", {"prefix": "a", "diffusion": {"steps": 10**12}}, "diffusion.steps"),
        ("/v1/infill", {"prefix": "a" * 600}, "prefix"),
        ("/v1/infill", {"parts": ["a" * 600, {"tokens": 4}]}, "parts"),
    ],
)
def test_numbers_that_no_arithmetic_survives_are_400s_that_name_the_field(
    client, path, body, param
):
    assert error_of(client.post(path, **body), 400)["param"] == param
    assert client.get("/health").status_code == 200


def test_a_model_that_cannot_be_served_is_refused(checkpoint):
    lm = load(checkpoint, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="not trained"):
        ModelServer(replace(lm, contract=lm.contract.model_copy(update={"ar_mode": None})))
