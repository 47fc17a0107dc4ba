"""Text with holes: the same path as other answers, against the Python API."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2d_ray import SamplingParams
from a2d_ray.config import LimitsSection, SamplingSection
from a2d_ray.generation.engine.engine import StepOutput
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from a2d_ray.serving.model.writing import InfillWriter
from a2d_ray.text.stream import decode
from tests.serving.in_process import Client, wait_in_a_round
from tests.serving.test_operations import samples
from tests.text.test_stream import byte_fallback, byte_level

INFILL = "/v1/infill"


def test_holes_are_filled_and_the_rest_is_kept(client, lm):
    body = client.post(INFILL, prefix="once upon ", suffix=" happily", max_tokens=6).json()
    assert body["text"] == f"once upon {body['holes'][0]} happily"
    ids = [*lm.tokenizer("once upon ").input_ids, *[None] * 6, *lm.tokenizer(" happily").input_ids]
    (wanted,) = lm.generate([[ids]], SamplingParams(max_new_tokens=len(ids)))
    assert body["text"] == wanted.text
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["prompt_tokens"] == len(ids) - 6
    parts = ["a", {"tokens": 2}, {"tokens": 1}, "b", {"tokens": 3}]
    body = client.post(INFILL, parts=parts, diffusion={"rule": "steps", "steps": 4}).json()
    one, two, three = body["holes"]
    assert body["text"] == f"a{one}{two}b{three}"


def test_options_are_those_of_the_python_api(client, lm):
    parts = ["a", {"tokens": 8}, "b"]
    fields = {"temperature": 1.0, "top_k": 5, "min_p": 0.01, "seed": 3, "logit_bias": {"70": 5}}
    body = client.post(INFILL, parts=parts, **fields).json()
    params = SamplingParams(**fields | {"logit_bias": {70: 5.0}})
    (wanted,) = lm.infill([["a", 8, "b"]], params)
    assert body["text"] == wanted.text
    (other,) = lm.infill([["a", 8, "b"]], SamplingParams(seed=4, temperature=1.0))
    assert body["text"] != other.text


def test_special_tokens_in_the_text_are_text(client, lm):
    for special in (lm.tokenizer.eos_token, lm.tokenizer.mask_token):
        body = client.post(INFILL, prefix=f"a{special}", max_tokens=2).json()
        assert body["text"] == f"a{special}{body['holes'][0]}"
        assert body["usage"]["prompt_tokens"] == len(f"a{special}")  # a token is a byte here
        assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prefix"),
        ({"parts": ["a"]}, "parts"),
        ({"parts": ["a", {"tokens": 0}]}, "parts[1].tokens"),
        ({"parts": ["a", {"tokens": 1}], "prefix": "b"}, "parts"),
        ({"prefix": "a" * 600}, "prefix"),
        ({"suffix": "a" * 600}, "suffix"),
        ({"parts": ["a" * 600, {"tokens": 1}]}, "parts"),
        ({"prefix": "a", "stream": True}, "stream"),
        ({"prefix": "a", "n": 2}, "n"),
        ({"prefix": "a", "stop": "b"}, "stop"),
        ({"prefix": "a", "guided_regex": "b"}, "guided_regex"),
        ({"prefix": "a", "include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"prefix": "a", "cache_salt": ""}, "cache_salt"),
        ({"prefix": "a", "diffusion": {"stream_mode": "block"}}, "diffusion.stream_mode"),
        ({"prefix": "a", "logit_bias": {"100000": 1}}, "logit_bias"),
    ],
)
def test_a_text_that_cannot_be_filled_is_a_400(client, fields, param):
    answer = client.post(INFILL, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"]


def test_limits_count_what_is_given_and_what_is_asked_for(lm):
    server = ModelServer(lm, limits=LimitsSection(max_prompt_tokens=5, max_new_tokens=4))
    client = Client(create_app({"tiny": server}))
    assert client.post(INFILL, prefix="abcde", max_tokens=4).status_code == 200
    error = client.post(INFILL, prefix="abc", suffix="def", max_tokens=1).json()["error"]
    assert (error["param"], error["code"]) == ("prefix", "context_length_exceeded")
    error = client.post(INFILL, prefix="a", max_tokens=5).json()["error"]
    assert error["param"] == "max_tokens" and "(5 tokens)" in error["message"]
    parts = [{"tokens": 2}, "a", {"tokens": 3}]
    assert client.post(INFILL, parts=parts).json()["error"]["param"] == "parts"
    server.close()


def test_what_was_filled_is_counted(client):
    usage = client.post(INFILL, prefix="abc", max_tokens=5).json()["usage"]
    found = samples(client.get("/metrics").text)
    assert found["a2d:generation_tokens_total", "{}"] == usage["completion_tokens"] == 5
    assert found["a2d:prompt_tokens_total", "{}"] == 3
    assert found["a2d:request_success_total", '{"finished_reason": "length"}'] == 1
    assert found["a2d:e2e_request_latency_seconds_count", "{}"] == 1


def test_a_cache_salt_keeps_texts_apart(client):
    def num_cached(**salt) -> int:
        body = client.post(INFILL, prefix="salt and pepper " * 4, max_tokens=4, **salt).json()
        return body["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert num_cached(cache_salt="one") == 0
    assert num_cached(cache_salt="one") > 0
    assert num_cached(cache_salt="two") == 0


def test_a_default_that_only_answers_have_is_no_hindrance(lm):
    server = ModelServer(lm, SamplingSection(min_tokens=20, stop=("a",)))
    client = Client(create_app({"tiny": server}))
    body = client.post(INFILL, prefix="abc", max_tokens=2).json()
    assert body["usage"]["completion_tokens"] == 2
    server.close()


def test_infill_and_other_answers_share_rounds(client, server):
    core = server._engine._engine

    async def ask(http):
        fill = {"model": "tiny", "prefix": "a", "max_tokens": 40, "diffusion": {"rule": "steps"}}
        text = {"model": "tiny", "prompt": "a", "max_tokens": 40, "ignore_eos": True}
        text["diffusion"] = fill["diffusion"]
        posts = [http.post(INFILL, json=fill), http.post("/v1/completions", json=text)]
        return [answer.json()["usage"] for answer in await asyncio.gather(*posts)]

    wait_in_a_round(server, 2)
    usages = client.run(ask)
    assert core.num_rounds < sum(usage["diffusion"]["forwards"] for usage in usages)


SPACE = byte_fallback().convert_tokens_to_ids("<0x20>")
PIECES = st.lists(st.sampled_from(["▁", "a", "b", "▁ab", "ab", "<0x21>"]), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(first=PIECES, second=PIECES, has_prefix=st.booleans())
def test_holes_keep_the_spaces_of_their_tokens(first, second, has_prefix):
    """The whole is what its tokens say together, though holes are decoded alone."""
    tokenizer = byte_fallback()
    parts = ["a"] * has_prefix + [len(first), "b", len(second)]
    one, two = map(tokenizer.convert_tokens_to_ids, (first, second))
    before, between = (tokenizer.convert_tokens_to_ids([text]) for text in "ab")
    ids = [before] * has_prefix + [one, between, two]
    piece = written(tokenizer, parts, ids)
    assert piece.text == decode(tokenizer, [token_id for part in ids for token_id in part])
    assert piece.text == f"{'a' * has_prefix}{piece.holes[0]}b{piece.holes[1]}"


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 255).filter(lambda i: i != SPACE), min_size=1, max_size=6))
def test_bytes_that_are_no_text_do_not_become_spaces(ids):
    for tokenizer in (byte_level(), byte_fallback()):
        piece = written(tokenizer, ["é", len(ids)], [tokenizer("é").input_ids, ids])
        assert piece.holes == (decode(tokenizer, ids),)


def written(tokenizer, parts, ids):
    """The piece of a text whose parts have become `ids`."""
    masked = [
        None if isinstance(part, int) else token_id
        for part, part_ids in zip(parts, ids, strict=True)
        for token_id in part_ids
    ]
    output = StepOutput(
        request_id="0",
        token_ids=tuple(token_id for part_ids in ids for token_id in part_ids),
        finish_reason="length",
        num_forwards=1,
        num_denoise_steps=1,
        canvas=(),
        canvas_confidence=(),
    )
    return InfillWriter(tokenizer, parts, masked).push(output)
