"""Rounds that are padded and replayed decide what eager rounds do.

On the stand-in device a replay calls the captured function again, on the same memory. Nothing of
CUDA runs there: what a GPU has to show is marked.
"""

import gc
import logging
import weakref

import pytest
import torch

from a2d_ray.config import AR_RULES, RULES
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine import graphs, spans
from a2d_ray.generation.engine.engine import Engine, Request
from a2d_ray.generation.engine.padding import next_step
from a2d_ray.generation.engine.runner import ModelRunner
from tests.closeness import assert_close
from tests.devices import GPU
from tests.generation.test_engine import MASK, PARAMS, PROMPTS, contract
from tests.generation.test_speculation import CAUSAL
from tests.standin.device import DEVICE
from tests.standin.test_engine import (
    CASES,
    SPECULATING,
    drive,
    fused,
    gated_model,
    make,
    requests_of,
)
from tests.tiny import tiny_a2d_model

MODEL = tiny_a2d_model("qwen3")
SHARED = [*PROMPTS[:2], [*PROMPTS[0], [60, 61]]]  # the last one begins as the first


class Replays:
    """`graphs.Capture` of the stand-in device."""

    def __init__(self):
        self.num_launches = {}  # of each graph: the same in every replay

    def __call__(self, run):
        number = len(self.num_launches)
        self.num_launches[number] = 0

        def replay():
            with DEVICE.counting() as counts:
                run()
            assert not counts.waits and not counts.to_device and not counts.to_host
            before = self.num_launches[number]
            self.num_launches[number] = counts.launches.total()
            assert before in (0, self.num_launches[number])
            DEVICE.counts.launches["a graph"] += 1

        return replay


@pytest.fixture(params=["standin", GPU])
def device(request, monkeypatch):
    """A device with graphs, whose shapes are captured when they are met."""
    monkeypatch.setattr(graphs, "MET_BEFORE_CAPTURE", 1)
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    monkeypatch.setattr(spans, "kernel_of", lambda *_: fused)
    monkeypatch.setattr(
        graphs, "capture_on", lambda device: Replays() if device.type != "cpu" else None
    )
    with DEVICE.present() as device:
        yield device


def counted(engine, start):
    return sum(n for name, n in engine.graph_counts.items() if name.startswith(start))


def check(device, terms, requests, make_model=tiny_a2d_model, **options):
    """Answers are the CPU's when graphs are captured, and when they are replayed; the engine, and
    what each round counted the second time.
    """
    options = {"kv_tokens": 256, "max_running": 12, **options}
    expected, _ = drive(make(make_model("qwen3"), terms, **options), requests)
    engine = make(make_model("qwen3").to(device), terms, **options)
    assert drive(engine, requests)[0] == expected
    answers, rounds = drive(engine, requests)
    assert answers == expected
    return engine, rounds


EAGER = 50  # launches; a prompt that is read causally has more
GRIDS = ["segment", "absolute", "prompt_end"]
ALL_RULES = [rule for rule in RULES if rule != "auto"]


def case_of(rule, grid, **options):
    """Terms and options of a rule, without what is always decided eagerly."""
    if rule in AR_RULES:
        terms = CAUSAL.model_copy(update={"block_grid": grid})
    else:
        terms = contract(grid=grid)
    params = [params for params in [*PARAMS, *SPECULATING[:2]] if params.rule in (rule, "auto")][-1]
    plain = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    more = {"rule": rule, "logit_bias": {}, "max_new_tokens": 8, "ignore_eos": True, **options}
    return terms, params.model_copy(update=plain | more)


@pytest.mark.parametrize(("index", "rule"), [*enumerate(ALL_RULES)])
def test_every_rule_decides_the_same_in_replayed_rounds(index, rule, device):
    """On all grids in turn; still one copy each way."""
    terms, params = case_of(rule, GRIDS[index % 3])
    engine, rounds = check(device, terms, requests_of([params], SHARED), prefix_cache=False)
    assert counted(engine, "layers replayed") >= 2
    assert bool(counted(engine, "decisions replayed")) == (rule != "klass")
    most = 2 if rule == "speculate" else 1
    for counts in rounds:
        assert counts.to_device.total() <= most and counts.to_host.total() <= most
        assert counts.waits.total() == counts.to_host.total(), counts.waits


@pytest.mark.parametrize("rule", ["threshold", "speculate"])
def test_padding_writes_nothing_that_eager_rounds_do_not_write(rule, device):
    """But for the scratch slot the store is the same."""
    terms, params = case_of(rule, "segment")
    stores = []
    for is_graphed in ("auto", False):
        options = {"kv_tokens": 256, "cuda_graphs": is_graphed}
        engine = make(tiny_a2d_model("qwen3").to(device), terms, **options)
        drive(engine, requests_of([params], SHARED))
        assert bool(engine.graph_counts) == bool(is_graphed)
        store = engine._runner._store
        stores.append([x[:-1].cpu() for x in (*store._keys, *store._values)])
    for graphed, eager in zip(*stores, strict=True):
        assert_close(graphed, eager)
        assert graphed[eager == 0].eq(0).all() and eager.eq(0).any()


@pytest.mark.parametrize("name", [name for name in CASES if name != "segment"])
def test_rules_and_options_mix_in_replayed_rounds(name, device):
    """What no graph has, such as penalties or guidance, is decided eagerly beside it."""
    terms, params, options = CASES[name]
    engine, _ = check(device, terms, requests_of(params[::2], PROMPTS[:2]), **options)
    assert not counted(engine, "layers failed") and not counted(engine, "decisions failed")
    assert bool(counted(engine, "layers replayed")) == (name != "mdlm")


@pytest.mark.parametrize("params", [
    SamplingParams(max_new_tokens=8, temperature=0.7, top_p=0.3, top_k=5, ignore_eos=True),
    SamplingParams(max_new_tokens=8, temperature=0.7, min_p=0.1, remask_threshold=0.008,
                   threshold=0.005, ignore_eos=True),
])  # fmt: skip
def test_draws_are_replayed(params, device):
    """Beside a greedy request, too."""
    greedy = params.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0})
    engine, _ = check(device, contract(), requests_of([params, greedy], SHARED[:2]))
    assert counted(engine, "decisions replayed") >= 2
    assert not counted(engine, "decisions eager: option")


def test_gated_adapters_act_at_no_padding(device):
    terms, params = case_of("speculate", "segment", temperature=2.0)
    engine, _ = check(device, terms, requests_of([params], PROMPTS[:1]), lambda _: gated_model())
    assert counted(engine, "layers replayed") >= 2


@pytest.mark.parametrize("rule", ["threshold", "ar", "speculate"])
def test_launches_of_replayed_rounds_are_few_and_do_not_grow_with_requests(rule, device):
    params, terms = {
        "threshold": (SamplingParams(max_new_tokens=8, threshold=0.0), contract()),
        "ar": (SamplingParams(rule="ar", max_new_tokens=8), CAUSAL),
        "speculate": (
            SamplingParams(
                rule="speculate", draft_tokens=2, draft_shape="linear", max_new_tokens=8
            ),
            CAUSAL,
        ),
    }[rule]
    params = params.model_copy(update={"ignore_eos": True})
    found = {}
    for number in (1, 16):
        requests = [
            Request(request_id=str(i), prompt=[[9, 10, 11 + i, 12, 13]], params=params)
            for i in range(number)
        ]
        engine = make(
            tiny_a2d_model("qwen3").to(device), terms, kv_tokens=1_000, prefix_cache=False
        )
        drive(engine, requests)
        _, rounds = drive(engine, requests)  # every shape has been met
        found[number] = [counts.launches.total() for counts in rounds]
        assert all(counts.to_device.total() <= 2 for counts in rounds)
    if device.type == "cuda":  # there the profiler counts: `make gpu-check`
        return
    # A graph and a copy of its inputs: for layers, for decisions, for drafts if there are any.
    wanted = {4, 6} if rule == "speculate" else {4}
    for counts in found.values():
        assert {number for number in counts if number < EAGER} == wanted


def test_a_replay_reads_and_writes_where_the_capture_did(device):
    terms, params = case_of("steps", "segment")
    engine = make(tiny_a2d_model("qwen3").to(device), terms, kv_tokens=256)
    drive(engine, requests_of([params], SHARED))
    held = addresses(engine)
    drive(engine, requests_of([params], SHARED))
    assert len(held) > 3 and held.items() <= addresses(engine).items()


def addresses(engine):
    """Where the inputs and the output of each graph lie, by shape."""
    both = (engine._runner.graphs._layers, engine._runner.graphs._decisions)
    return {
        key: [getattr(x, "inner", x).data_ptr() for x in (graph.inputs, graph.output)]
        for one in both
        for key, graph in one._graphs.items()
    }


def test_a_warm_up_leaves_out_what_there_is_no_memory_for(device, monkeypatch):
    decide = ModelRunner._graphed_words

    def small(self, head):
        if len(head.row_R) > 64:
            raise torch.OutOfMemoryError("tried to allocate 1.28 GiB")
        return decide(self, head)

    monkeypatch.setattr(ModelRunner, "_graphed_words", small)
    options = {"kv_tokens": 64, "max_running": 16}
    engine = make(tiny_a2d_model("qwen3").to(device), contract(), **options)
    engine.warm_up()
    assert counted(engine, "decisions captured") == 1
    assert counted(engine, "decisions not captured ahead: out of memory") == 1
    assert not counted(engine, "decisions failed")


def test_a_warm_up_captures_what_a_server_meets(device, monkeypatch):
    monkeypatch.setattr(graphs, "MET_BEFORE_CAPTURE", 10**6)
    engine = make(tiny_a2d_model("qwen3").to(device), contract(), kv_tokens=256, max_running=4)
    engine.warm_up()
    num_segments = len([1, 2, 4, 8])
    assert counted(engine, "layers captured") == 2 * num_segments
    assert counted(engine, "decisions captured") == next_step(4 * 4 + 1) // 64
    assert engine.num_rounds == engine.num_used_kv_tokens == 0
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    requests = requests_of([params], [[[9 + i] * 4] for i in range(6)])
    before = engine.graph_counts
    answers, rounds = drive(engine, requests)
    assert answers == drive(make(MODEL, contract()), requests)[0]
    after = engine.graph_counts
    assert after["layers replayed"] == after["decisions replayed"] == len(rounds)
    assert {name for name in after if after[name] != before.get(name)} == {
        "layers replayed",
        "decisions replayed",
    }


@pytest.mark.parametrize("first_failure", [1, 3])
def test_what_cannot_be_captured_runs_eagerly_and_is_told_once(
    first_failure, device, monkeypatch, caplog
):
    calls = []

    def capture_on(_):
        def capture(run):
            calls.append(run)
            if len(calls) >= first_failure:
                raise RuntimeError("operation not permitted\nwhen stream is capturing")
            return run

        return capture

    terms, params = case_of("steps", "segment")
    requests = requests_of([params], SHARED)
    expected, _ = drive(make(MODEL, terms), requests)
    monkeypatch.setattr(graphs, "capture_on", capture_on)
    engine = make(tiny_a2d_model("qwen3").to(device), terms, kv_tokens=256)
    with caplog.at_level(logging.WARNING, "a2d_ray"):
        for _ in range(2):
            assert drive(engine, requests)[0] == expected
    assert counted(engine, "layers failed") == 1
    assert engine._runner.graphs._layers.num_captured == 0
    told = [record.getMessage() for record in caplog.records]
    num_failed = 1 + counted(engine, "decisions failed")
    assert len(told) == num_failed
    assert all("not permitted when stream" in text for text in told)


def test_an_engine_is_gone_with_its_last_reference(device):
    """Its graphs hold memory of the device."""
    engine = make(tiny_a2d_model("qwen3").to(device), contract(), kv_tokens=64)
    drive(engine, requests_of([SamplingParams(max_new_tokens=4)], PROMPTS[1:2]))
    assert engine._runner.graphs.num_captured > 0
    runner = weakref.ref(engine._runner)
    gc.disable()
    try:
        del engine
        assert runner() is None
    finally:
        gc.enable()


def test_graphs_are_refused_by_name_where_there_are_none():
    with pytest.raises(ValueError, match=r"cuda_graphs=true: the model is on cpu"):
        make(MODEL, contract(), cuda_graphs=True)


def test_a_cpu_pads_nothing():
    engine = Engine(MODEL, contract(), eos_ids={MASK}, max_length=256)
    assert engine._runner.graphs is None and engine.graph_counts == {}
