"""Rule ``speculate`` over HTTP: the answers of rule ``ar``, their cost, and scores of prompts."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from a2d_ray import SamplingParams
from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.closeness import assert_close
from tests.serving.in_process import Client
from tests.serving.test_choices import MESSAGES, SCHEMA, TOOLS, form

CHAT, TEXT, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"
FEW = {str(i): 6.0 for i in (68, 72, 75, 90)}  # so few likely tokens that drafts come true
DRAFTS = {"draft_tokens": 3, "draft_shape": "tree"}
LENGTH = {"max_tokens": 24, "logit_bias": FEW}


def with_ar_mode(lm, **changes):
    """The same weights, as if their AR mode had been trained."""
    values = {"clean_attention": "causal", "ar_mode": "trained"} | changes
    return replace(lm, contract=lm.contract.model_copy(update=values))


@pytest.fixture(scope="module")
def client(lm):
    """A server that leaves the rule to the model."""
    server = ModelServer(with_ar_mode(lm), SamplingSection(max_new_tokens=24))
    yield Client(create_app({"tiny": server}))
    server.close()


@pytest.fixture(scope="module")
def plain(lm):
    """The same without an AR mode."""
    server = ModelServer(with_ar_mode(lm, ar_mode=None))
    yield Client(create_app({"tiny": server}))
    server.close()


def answers(client, path, rule, **options):
    """(choices, usage) under a rule of the AR mode."""
    options = {"diffusion": {"rule": rule, **(DRAFTS if rule == "speculate" else {})}} | options
    response = client.post(path, **options)
    assert response.status_code == 200, response.text
    return response.json()["choices"], response.json()["usage"]


def as_close(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        columns = [choice.pop("logprobs") or {} for choice in (ours, theirs)]
        assert_close(
            *([p for p in each.pop("token_logprobs", ()) if p is not None] for each in columns)
        )
        for each in (*columns, ours, theirs):
            each.pop("top_logprobs", None)
            each.pop("prompt_logprobs", None)
        assert ours == theirs and columns[0] == columns[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_eos": True},
        {"temperature": 1.0, "seed": 3, "n": 3},
        {"temperature": 0.8, "top_p": 0.9, "seed": 4, "frequency_penalty": 0.7, "min_tokens": 9},
        {"temperature": 1.0, "seed": 5, "stop": ["AE", "EW"], "n": 4},
        {"temperature": 1.0, "seed": 6, "stop": ["A"], "include_stop_str_in_output": True},
        {"logprobs": 2, "ignore_eos": True},
        {"logprobs": 1, "echo": True, "prompt_logprobs": 1},
    ],
)
def test_speculate_writes_what_ar_writes(client, options):
    asked = {"prompt": "abc", **LENGTH, **options}
    wanted, ar_usage = answers(client, TEXT, "ar", **asked)
    found, usage = answers(client, TEXT, "speculate", **asked)
    as_close(found, wanted)
    assert usage["completion_tokens"] == ar_usage["completion_tokens"]
    assert usage["diffusion"]["forwards"] < ar_usage["diffusion"]["forwards"]
    streamed = client.events(TEXT, prompt="abc", **LENGTH, **{**options, "prompt_logprobs": None})
    for index, choice in enumerate(found):
        pieces = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]


@pytest.mark.parametrize("n", [1, 3])
def test_usage_sums_up(client, n):
    """Every forward that decides writes its accepted drafts and a token of its own."""
    asked = {"messages": MESSAGES, "ignore_eos": True, "n": n, "temperature": 1.0, "seed": 1}
    _, usage = answers(client, CHAT, "speculate", **asked, **LENGTH)
    cost = usage["diffusion"]
    assert usage["completion_tokens"] == 24 * n
    written = cost["accepted"] + cost["denoise_steps"]
    assert 0 <= written - usage["completion_tokens"] <= n  # the last one may be a draft
    assert 0 < cost["accepted"] < cost["drafted"]
    assert cost["tokens_per_forward"] == round(24 * n / cost["forwards"], 3)
    _, usage = answers(client, CHAT, "ar", **asked, **LENGTH)
    cost = usage["diffusion"]
    assert (cost["drafted"], cost["accepted"], cost["denoise_steps"]) == (0, 0, 24 * n)


def test_metrics_count_drafts_and_no_blocks(lm):
    server = ModelServer(with_ar_mode(lm), SamplingSection(**DRAFTS))
    client = Client(create_app({"tiny": server}))
    cost = [client.post(TEXT, prompt=p, **LENGTH).json()["usage"]["diffusion"] for p in "ab"]
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = {s.name: s.value for family in families for s in family.samples}
    for what, name in (("drafted", "draft"), ("accepted", "accepted")):
        counted = found[f"a2d:spec_decode_num_{name}_tokens_total"]
        assert counted == sum(each[what] for each in cost) > 0
    assert found["a2d:denoise_steps_per_block_count"] == 0
    assert found["a2d:time_to_first_block_seconds_count"] == 0
    server.close()


# The rule that nobody named.


def generated(lm, **options):
    (answer,) = lm.generate(["abc"], SamplingParams(max_new_tokens=24, **options))
    return answer.text


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({}, {"rule": "ar"}),
        ({"rule": "auto"}, {"rule": "ar"}),
        ({"threshold": 0.8}, {"rule": "threshold", "threshold": 0.8}),
        ({"steps": 5}, {"rule": "steps", "steps": 5}),
        ({"block_size": 2}, {"rule": "threshold", "block_size": 2}),
        ({"remask_threshold": 0.5}, {"rule": "threshold", "remask_threshold": 0.5}),
    ],
)
def test_without_a_rule_the_answer_is_the_ar_modes(client, lm, asked, rule):
    found = client.post(TEXT, prompt="abc", diffusion=asked).json()
    assert found["choices"][0]["text"] == generated(with_ar_mode(lm), **rule)
    steps = found["usage"]["diffusion"]["denoise_steps"]
    assert rule["rule"] == "ar" or found["usage"]["diffusion"]["drafted"] == 0 < steps


def test_holes_are_filled_by_the_rule_for_them(client, plain):
    asked = {"parts": ["one ", {"tokens": 5}, " three"]}
    assert client.post(INFILL, **asked).json() == plain.post(INFILL, **asked).json()
    refused = client.post(INFILL, **asked, diffusion={"rule": "speculate"})
    assert refused.json()["error"]["param"] == "diffusion.rule"


@pytest.mark.parametrize(
    ("contract", "served", "lossless", "rule"),
    [
        ({}, {}, "own", "speculate"),
        ({"ar_mode": "original"}, {}, "original", "speculate"),
        ({"ar_mode": "original", "objective": None}, {}, "original", "ar"),
        ({"ar_mode": None}, {}, "no", "threshold"),
        ({"clean_attention": "block"}, {}, "own", "threshold"),
        ({"objective": "mdlm"}, {}, "no", "threshold"),
        ({}, {"factor": 2.0}, "own", "factor"),
        ({}, {"rule": "ar"}, "own", "ar"),
        ({}, {"block_size": 4}, "own", "threshold"),
    ],
)
def test_a_card_tells_the_rule_and_whose_answers_it_gives(lm, contract, served, lossless, rule):
    section = SamplingSection(max_new_tokens=8, **served)
    server = ModelServer(with_ar_mode(lm, **contract), section)
    client = Client(create_app({"tiny": server}, defaults={"tiny": section}))
    card = client.get("/v1/models/tiny").json()["diffusion"]
    assert (card["lossless"], card["default_rule"]) == (lossless, rule)
    assert card["defaults"]["rule"] == section.rule
    by_default, named = (
        client.post(TEXT, prompt="abc", **asked).json()
        for asked in ({}, {"diffusion": {"rule": rule}})
    )
    assert by_default["choices"] == named["choices"]
    server.close()


# Forms and tools.


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": form(SCHEMA)},
        {"guided_regex": "(yes|no), [0-9]{3}"},
        {"tools": TOOLS, "tool_choice": "required"},
    ],
)
def test_forms_take_several_tokens_per_forward(roomy_lm, options):
    server = ModelServer(with_ar_mode(roomy_lm), SamplingSection(max_new_tokens=200))
    client = Client(create_app({"tiny": server}))
    asked = {"messages": MESSAGES, "temperature": 1.0, "seed": 3, "logit_bias": {"2": 5}, **options}
    by_default, _ = answers(client, CHAT, "auto", **asked)
    wanted, ar_usage = answers(client, CHAT, "ar", **asked)
    found, usage = answers(client, CHAT, "speculate", **asked)
    for choices in (by_default, wanted, found):
        for call in choices[0]["message"].get("tool_calls", ()):
            call["id"] = ""
    assert by_default == wanted == found
    assert usage["diffusion"]["drafted"] > 0 == ar_usage["diffusion"]["drafted"]
    _, prefix = answers(client, CHAT, "prefix", **asked)
    assert prefix["diffusion"]["drafted"] == 0
    refused = client.post(CHAT, **asked, diffusion={"rule": "steps"})
    assert refused.json()["error"]["param"] == "diffusion.rule"
    server.close()


def test_a_served_rule_that_does_not_go_from_the_left_gives_way_to_prefix(roomy_lm):
    server = ModelServer(with_ar_mode(roomy_lm), SamplingSection(max_new_tokens=60, threshold=0.2))
    client = Client(create_app({"tiny": server}))
    asked = {"messages": MESSAGES, "guided_regex": "[0-9]{40}"}
    named = {"rule": "prefix", "threshold": 0.2}
    by_default, wanted = (
        client.post(CHAT, **asked, **rule).json() for rule in ({}, {"diffusion": named})
    )
    assert by_default["choices"] == wanted["choices"]
    costs = [body["usage"]["diffusion"]["denoise_steps"] for body in (by_default, wanted)]
    assert costs[0] == costs[1]
    server.close()


# Log-probabilities of prompts.


@pytest.fixture(scope="module")
def causal_logp(checkpoint, lm):
    """Log-probabilities by the AR original in transformers: ids -> [T - 1, V]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.parent / "ar", dtype=torch.float32)

    @torch.inference_mode()
    def logp(ids):
        logits = model(torch.tensor([ids])).logits[0, :-1]
        logits[:, lm.contract.mask_token_id] = -torch.inf  # never written
        return logits.log_softmax(-1)

    return logp


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("logprobs", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_is_scored_as_by_the_ar_model(
    client, lm, causal_logp, max_tokens, logprobs, stream
):
    prompt = "one two"
    ids = list(lm.encode(prompt)[0])
    asked = {"prompt": ids, "echo": True, "logprobs": logprobs, "max_tokens": max_tokens}
    if stream:
        choices = [chunk["choices"][0] for chunk in client.events(TEXT, **asked)]
        text = "".join(choice["text"] for choice in choices)
        parts = [choice["logprobs"] for choice in choices]
        columns = {key: [v for part in parts for v in part[key]] for key in parts[0]}
    else:
        body = client.post(TEXT, **asked).json()
        text, columns = body["choices"][0]["text"], body["choices"][0]["logprobs"]
        assert body["usage"]["completion_tokens"] == max_tokens
    assert text.startswith(prompt) and "".join(columns["tokens"][: len(ids)]) == prompt
    starts = [text.index(c, i) for i, c in enumerate(prompt)]
    assert columns["text_offset"][: len(ids)] == starts
    assert len({len(column) for column in columns.values()}) == 1
    assert len(columns["tokens"]) == len(ids) + max_tokens
    assert columns["token_logprobs"][0] is columns["top_logprobs"][0] is None
    wanted = causal_logp(ids)
    own = wanted[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert_close(columns["token_logprobs"][1 : len(ids)], own.tolist())
    for row, top in zip(wanted, columns["top_logprobs"][1 : len(ids)], strict=True):
        likely = row.topk(max(logprobs, 1)).values
        assert len(top) == logprobs  # half characters have names of their own
        assert all(abs(likely - p).min() < 1e-4 for p in top.values())
        assert not logprobs or abs(max(top.values()) - likely[0]) < 1e-4


def test_a_scored_prompt_has_one_entry_more_whatever_comes(client):
    """The token behind may be the end of the turn, which is no text."""
    asked = {"prompt": "abc", "echo": True, "logprobs": 0, "logit_bias": {"2": 100}}
    (choice,) = client.post(TEXT, **asked, max_tokens=1).json()["choices"]
    assert (choice["text"], len(choice["logprobs"]["tokens"])) == ("abc", 4)
    (choice,) = client.post(TEXT, **asked, max_tokens=3).json()["choices"]
    assert (choice["finish_reason"], len(choice["logprobs"]["tokens"])) == ("stop", 3)


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_prompt_logprobs_have_vllms_form(client, lm, causal_logp, path):
    content = {"prompt": ["abc", "x", ""]} if path == TEXT else {"messages": MESSAGES}
    body = client.post(path, **content, prompt_logprobs=2, max_tokens=2).json()
    if path == TEXT:
        found = [choice["prompt_logprobs"] for choice in body["choices"]]
        prompts = [lm.encode(text) for text in content["prompt"]]
    else:
        found, prompts = [body["prompt_logprobs"]], [lm.encode(MESSAGES)]
    for places, prompt in zip(found, prompts, strict=True):
        ids = [token for segment in prompt for token in segment]
        assert len(places) == len(ids) and places[:1] == [None] * bool(ids)
        rows = causal_logp(ids) if ids else []
        for row, token, place in zip(rows, ids[1:], places[1:], strict=True):
            assert_close(place[str(token)]["logprob"], float(row[token]))
            best = [(each["rank"], int(i)) for i, each in place.items() if each["rank"]]
            assert [i for _, i in sorted(best)] == row.topk(2).indices.tolist()
            assert all(each["decoded_token"] is not None for each in place.values())
            assert len(place) == 2 + (token not in row.topk(2).indices)
    assert "prompt_logprobs" not in json.dumps(client.post(path, **content, max_tokens=2).json())


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"echo": True, "logprobs": 1}, "logprobs", "needs an AR mode"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "objective.ar_loss_weight=1"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "20"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "stream=false"),
        (
            {"prompt_logprobs": 0, "diffusion": {"rule": "threshold"}},
            "prompt_logprobs",
            "set rule to ar or speculate",
        ),
        ({"max_tokens": 0}, "max_tokens", "echo=true"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(plain, asked, param, words):
    response = plain.post(TEXT, prompt="abc", **asked)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param) and words in error["message"]


def test_a_served_diffusion_rule_does_not_keep_a_prompt_from_being_scored(lm, client):
    server = ModelServer(with_ar_mode(lm), SamplingSection(threshold=0.5))
    asked = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0}
    found = Client(create_app({"tiny": server})).post(TEXT, **asked).json()["choices"]
    assert found == client.post(TEXT, **asked).json()["choices"]
    server.close()


def test_the_harness_measures_likelihoods(lm, checkpoint, causal_logp):
    """`local-completions` of lm-evaluation-harness: contexts, continuations, whole texts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    pairs = [("one", " two"), ("one", " three"), ("abc", "d"), ("x", "yz")]
    server = ModelServer(with_ar_mode(lm))
    with listening(create_app({"tiny": server})) as url:
        harness = LocalCompletionsAPI(
            model="tiny",
            base_url=f"{url}/v1/completions",
            tokenizer_backend="huggingface",
            tokenizer=str(checkpoint),
            batch_size=3,
            max_length=256,
            max_retries=1,
        )
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        found = harness.loglikelihood(asked, disable_tqdm=True)
        whole = Instance("loglikelihood_rolling", {}, ("one two three",), 0)
        (rolling,) = harness.loglikelihood_rolling([whole], disable_tqdm=True)
    server.close()
    for (context, continuation), (total, is_greedy) in zip(pairs, found, strict=True):
        ids = list(lm.encode(context + continuation)[0])
        start = len(lm.encode(context)[0])
        rows = causal_logp(ids)[start - 1 :]
        targets = torch.tensor(ids[start:])
        assert_close(total, float(rows.gather(-1, targets[:, None]).sum()))
        assert is_greedy == bool((rows.argmax(-1) == targets).all())
    ids = [harness.prefix_token_id, *lm.encode("one two three")[0]]
    wanted = causal_logp(ids).gather(-1, torch.tensor(ids[1:])[:, None]).sum()
    assert_close(rolling, float(wanted))


# Streams.


def test_a_stream_of_denoising_carries_the_drafts(client):
    """What a chunk accepts are the first drafts of the chunk before."""
    options = {"diffusion": {**DRAFTS, "stream_mode": "denoise"}, "ignore_eos": True, **LENGTH}
    chunks = [c["choices"][0] for c in client.events(TEXT, prompt="abc", **options)]
    (wanted,) = client.post(TEXT, prompt="abc", **options).json()["choices"]
    assert "".join(chunk["text"] for chunk in chunks) == wanted["text"]
    states = [chunk["diffusion"] for chunk in chunks[:-1]]
    assert all(state["is_draft"] for state in states)
    assert any(len(state["canvas"]) == 3 for state in states)
    for before, state, chunk in zip(states, states[1:], chunks[1:], strict=False):
        num_accepted = state["accepted"] - before["accepted"]
        assert state["drafted"] - before["drafted"] == len(before["canvas"])
        drafts = "".join(slot["text"] for slot in before["canvas"][:num_accepted])
        assert chunk["text"].startswith(drafts)
        assert state["completion_tokens"] - before["completion_tokens"] == num_accepted + 1
    # Block by block the canvas is what it was.
    blocks = {"diffusion": {"threshold": 0.5, "stream_mode": "denoise"}, **LENGTH}
    chunks = [c["choices"][0] for c in client.events(TEXT, prompt="abc", **blocks)]
    assert not any(chunk["diffusion"]["is_draft"] for chunk in chunks[:-1])


def test_a_client_that_leaves_frees_its_drafts(lm):
    server = ModelServer(with_ar_mode(lm), SamplingSection(**DRAFTS))
    engine = server._engine._engine
    client = Client(create_app({"tiny": server}))

    async def leave(http):
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 400, "ignore_eos": True, "n": 3}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.post(TEXT, json=body), 0.3)
        for _ in range(200):
            if not engine.has_unfinished():
                return
            await asyncio.sleep(0.02)

    step = engine.step
    engine.step = lambda: time.sleep(0.02) or step()
    client.run(leave)
    assert engine.num_used_kv_tokens == 0 and not engine.has_unfinished()
    server.close()
