"""The engine on an accelerator: the CPU's tokens, one copy each way, launches that do not grow."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

from a2d_ray.config import LoraSection
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine import spans
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.models.gated_lora import add_gated_adapters, gated_linears, settle_mask_row
from tests.devices import GPU
from tests.generation.test_engine import EOS, MASK, PARAMS, PROMPTS, contract
from tests.generation.test_speculation import CAUSAL, SHIFTED, OddFirst
from tests.standin.device import DEVICE, StandIn, kernel
from tests.tiny import tiny_a2d_model

MODEL = tiny_a2d_model("qwen3")
SPECULATING = [
    SamplingParams(rule="ar", max_new_tokens=9, ignore_eos=True),
    SamplingParams(
        rule="speculate",
        draft_tokens=3,
        draft_shape="tree",
        max_new_tokens=12,
        logit_bias={33: 4.0},
        presence_penalty=0.3,
        ignore_eos=True,
    ),
    SamplingParams(
        rule="speculate",
        draft_tokens=2,
        draft_shape="linear",
        temperature=2.0,
        top_p=0.3,
        max_new_tokens=10,
        min_tokens=4,
    ),
]
MIXED = [PARAMS[1], *PARAMS[3:5], *PARAMS[9:14], SamplingParams(max_new_tokens=6, cfg_scale=1.5)]


@pytest.fixture
def device(monkeypatch):
    """The stand-in device, with its fused attention."""
    monkeypatch.setattr(spans, "kernel_of", lambda *_: fused)
    with DEVICE.present() as device:
        yield device


@pytest.fixture(params=["standin", GPU])
def accelerator(request):
    """The stand-in device, or a GPU, where nothing is counted."""
    if request.param == "cuda":
        return torch.device("cuda")
    return request.getfixturevalue("device")


def fused(call, query, key, value, scale):
    """`spans.flash` as the device would run it: it reads rows whose numbers lie together."""
    assert {x.stride(-1) for x in (query, key, value)} == {1}
    names = [field.name for field in fields(call)]
    given = {name: getattr(call, name) for name in names}
    on_host = {n: x.inner if isinstance(x, StandIn) else x for n, x in given.items()}

    def run(*tensors):
        return spans.plain(replace(call, **on_host), *tensors, scale)

    return kernel(run)(query, key, value)


def make(model, terms, **options):
    return Engine(model, terms, eos_ids={EOS}, max_length=256, options=EngineOptions(**options))


def run(model, terms, requests, **options):
    """Answers by id, and what each round counted."""
    return drive(make(model, terms, **options), requests)


def drive(engine, requests):
    for request in requests:
        engine.add_request(request)
    answers, rounds = {}, []
    while engine.has_unfinished():
        with DEVICE.counting() as counts:
            outputs = engine.step()
        rounds.append(counts)
        for output in outputs:
            assert output.error is None, output.error
            answers.setdefault(output.request_id, []).extend(output.token_ids)
    assert engine.num_used_kv_tokens == 0
    return answers, rounds


def requests_of(params, prompts=PROMPTS, **more):
    pairs = itertools.product(prompts, params)
    return [
        Request(request_id=str(i), prompt=prompt, params=p, **more)
        for i, (prompt, p) in enumerate(pairs)
    ]


CASES = {
    "segment": (contract(), MIXED, {}),
    "fragments": (contract(grid="absolute"), MIXED[:4], {"kv_tokens": 120, "max_running": 5}),
    "mdlm": (contract("mdlm"), MIXED[::2], {}),
    "causal": (contract().model_copy(update={"clean_attention": "causal"}), MIXED[:3], {}),
    "shifted": (contract().model_copy(update={"right_shift_logits": True}), MIXED[:3], {}),
    "speculation": (CAUSAL, [*SPECULATING, MIXED[0]], {"max_tokens_per_round": 40}),
    "shifted speculation": (SHIFTED, SPECULATING, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_cpu_with_one_copy_each_way(name, accelerator):
    """Every copy and every wait is counted; speculation decides twice in a round."""
    terms, params, options = CASES[name]
    requests = requests_of(params, PROMPTS[:2])
    expected, _ = run(MODEL, terms, requests, **options)
    answers, rounds = run(tiny_a2d_model("qwen3").to(accelerator), terms, requests, **options)
    assert answers == expected
    most = 2 if "speculation" in name else 1
    for counts in rounds:
        assert sum(counts.to_device.values()) <= most
        assert sum(counts.to_host.values()) <= most
        assert counts.waits.total() == counts.to_host.total(), counts.waits
    if accelerator.type != "cuda":
        assert max(counts.to_host.total() for counts in rounds) == most


def test_a_grammar_and_a_prompt_that_is_scored(accelerator):
    scored = SamplingParams(rule="ar", max_new_tokens=4, prompt_logprobs=2, logprobs=1)
    drafting = SPECULATING[1].model_copy(update={"draft_shape": "linear", "ignore_eos": False})
    for params in (drafting, scored):
        answers = []
        for model in (MODEL, tiny_a2d_model("qwen3").to(accelerator)):
            grammar = OddFirst(8) if params.rule == "speculate" else None
            request = Request(request_id="a", prompt=PROMPTS[0], params=params, grammar=grammar)
            answers.append(run(model, CAUSAL, [request])[0])
        assert answers[0] == answers[1]


@pytest.mark.parametrize("rule", ["threshold", "drawn", "speculate"])
def test_launches_and_bytes_do_not_grow_with_requests(rule, device):
    """Each request brings the same; only the tensors are longer."""
    params = {
        "threshold": SamplingParams(max_new_tokens=8, threshold=0.0, ignore_eos=True),
        "drawn": SamplingParams(
            max_new_tokens=8, rule="steps", steps=2, temperature=0.7, top_p=0.3, ignore_eos=True
        ),
        "speculate": SPECULATING[1].model_copy(update={"max_new_tokens": 4}),
    }[rule]
    terms = CAUSAL if rule == "speculate" else contract()
    found = {}
    for number in (1, 64):
        prompt = [[9 + i for i in range(5)]]
        requests = [Request(request_id=str(i), prompt=prompt, params=params) for i in range(number)]
        model = tiny_a2d_model("qwen3").to(device)
        _, rounds = run(model, terms, requests, prefix_cache=False, max_tokens_per_round=2_000)
        found[number] = [counts.launches.total() for counts in rounds]
        num_rows = number * max(terms.block_size, 4)
        assert all(counts.bytes_to_host <= 24 * num_rows + 1_024 for counts in rounds)
    assert found[1] == found[64]
    assert max(found[1]) < 400


def gated_model():
    """A tiny model with random adapters that act at noised tokens."""
    model = tiny_a2d_model("qwen3")
    add_gated_adapters(model, LoraSection(r=2, noised_only=True), mask_id=MASK, base="base")
    settle_mask_row(model)
    generator = torch.Generator().manual_seed(1)
    for parts in gated_linears(model).values():
        parts.b_Or.data.copy_(torch.randn(parts.b_Or.shape, generator=generator))
    return model


def test_gated_adapters_cost_no_wait(accelerator):
    """Which tokens are noised is known on the host."""
    params = SPECULATING[1].model_copy(update={"temperature": 2.0, "presence_penalty": 0.0})
    request = Request(request_id="a", prompt=PROMPTS[0], params=params)
    found = []
    for place in ("cpu", accelerator):
        found.append(run(gated_model().to(place), CAUSAL, [request]))
    assert found[0][0] == found[1][0] and len(found[0][1]) == len(found[1][1])
    assert all(counts.waits.total() <= 2 for counts in found[1][1])


def test_a_warm_up_answers_once_and_leaves_nothing(device):
    engines = [
        Engine(model, contract(), eos_ids={EOS}, max_length=256)
        for model in (MODEL, tiny_a2d_model("qwen3").to(device))
    ]
    for engine, is_run in zip(engines, (False, True), strict=True):
        with DEVICE.counting() as counts:
            engine.warm_up()
        assert bool(counts.launches) == is_run
        assert not engine.has_unfinished()
        assert engine.num_rounds == engine.num_used_kv_tokens == 0


def test_a_large_nucleus_is_decided_again(accelerator):
    params = SamplingParams(max_new_tokens=4, temperature=9.0, top_p=0.99999, ignore_eos=True)
    requests = requests_of([params], PROMPTS[:1])
    terms = contract()
    expected, _ = run(MODEL, terms, requests)
    answers, rounds = run(tiny_a2d_model("qwen3").to(accelerator), terms, requests)
    assert answers == expected
    if accelerator.type != "cuda":
        assert max(counts.to_host.total() for counts in rounds) > 1


def test_without_fused_attention_the_answers_are_the_same():
    """As on devices that have none: plain torch, in as many launches for any number of requests."""
    requests = requests_of(MIXED[:2], PROMPTS[:2])
    terms = contract()
    expected, _ = run(MODEL, terms, requests)
    with DEVICE.present() as device:
        assert run(tiny_a2d_model("qwen3").to(device), terms, requests)[0] == expected
