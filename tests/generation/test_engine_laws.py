"""An answer is a function of its request: not of neighbours, arrival, chunks, cache or fusion."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.models.contract import Contract
from tests.generation.test_reference import NO_TIES
from tests.tiny import tiny_a2d_model

MASK, EOS = 300, 7
MODEL = tiny_a2d_model("llama")
LAW = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make_engine(objective="bd3lm", grid="segment", clean="block", **options):
    contract = Contract(
        objective=objective,
        mask_token_id=MASK,
        block_size=4,
        block_grid=grid,
        clean_attention=clean,
    )
    return Engine(MODEL, contract, eos_ids={EOS}, max_length=256, options=EngineOptions(**options))


def run(engine, requests, arrivals=None, aborts=()):
    """Answers by id; request i joins before round arrivals[i], `aborts` are (round, id)."""
    arrivals = arrivals or [0] * len(requests)
    answers, reasons, round_index, todo = (
        {},
        {},
        0,
        sorted(zip(arrivals, range(len(requests)), strict=True)),
    )
    while todo or engine.has_unfinished():
        while todo and todo[0][0] <= round_index:
            engine.add_request(requests[todo.pop(0)[1]])
        for when, request_id in aborts:
            if when == round_index:
                engine.abort(request_id)
        for output in engine.step():
            answers.setdefault(output.request_id, []).extend(output.token_ids)
            reasons[output.request_id] = output.finish_reason
        round_index += 1
        assert round_index < 5_000, "the engine stalls"
    return {i: (ids, reasons[i]) for i, ids in answers.items() if reasons[i]}


segments = st.lists(st.lists(st.integers(8, 250), min_size=1, max_size=11), max_size=4)
rules = st.one_of(
    st.fixed_dictionaries({"threshold": st.sampled_from([0.02, 0.9])}),
    st.fixed_dictionaries(
        {
            "rule": st.just("steps"),
            "steps": st.sampled_from([None, 4]),
            "remasking": st.sampled_from(["low_confidence", "random"]),
        }
    ),
)
params = st.builds(
    lambda rule, **options: SamplingParams(**rule, **options),
    rules,
    max_new_tokens=st.integers(1, 14),
    temperature=st.sampled_from([0.0, 1.2]),
    seed=st.integers(0, 5),
    ignore_eos=st.booleans(),
)


@st.composite
def jobs(draw):
    """Up to six requests: prompt, parameters, the round of arrival."""
    drawn = draw(st.lists(st.tuples(segments, params, st.integers(0, 12)), min_size=1, max_size=6))
    return [(prompt, p if prompt else p.model_copy(update=NO_TIES), r) for prompt, p, r in drawn]


options = st.fixed_dictionaries(
    {
        "max_running": st.integers(1, 8),
        "max_tokens_per_round": st.sampled_from([1, 7, 30, 512]),
        "kv_tokens": st.sampled_from([64, 90, 4_096]),
        "prefix_cache": st.booleans(),
        "fused_commit": st.booleans(),
    }
)


@pytest.mark.parametrize("grid", ["segment", "absolute", "prompt_end"])
@pytest.mark.parametrize("clean", ["block", "causal"])
@LAW
@given(jobs=jobs(), options=options)
def test_nothing_beside_a_request_changes_its_answer(grid, clean, jobs, options):
    requests = [
        Request(request_id=str(i), prompt=prompt, params=p) for i, (prompt, p, _) in enumerate(jobs)
    ]
    alone = {}
    for request in requests:
        plain = make_engine(grid=grid, clean=clean, prefix_cache=False, fused_commit=False)
        alone |= run(plain, [request])
    engine = make_engine(grid=grid, clean=clean, **options)
    assert run(engine, requests, [arrival for _, _, arrival in jobs]) == alone
    assert engine.num_used_kv_tokens == 0
    assert run(engine, requests) == alone  # again, on what the prefix cache now holds
    assert engine.num_used_kv_tokens == 0


@LAW
@given(jobs=jobs(), max_running=st.integers(1, 8))
def test_the_same_for_mdlm(jobs, max_running):
    requests = [
        Request(request_id=str(i), prompt=prompt, params=p) for i, (prompt, p, _) in enumerate(jobs)
    ]
    alone = {}
    for request in requests:
        alone |= run(make_engine("mdlm"), [request])
    together = make_engine("mdlm", max_running=max_running)
    assert run(together, requests, [arrival for _, _, arrival in jobs]) == alone


@pytest.mark.parametrize("round_index", range(0, 12, 2))
def test_an_abort_in_any_round_gives_all_slots_back(round_index):
    """Also of a request whose unfinished prompt others wait for."""
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    prompt = [[9 + i for i in range(30)]]
    requests = [Request(request_id=name, prompt=prompt, params=params) for name in "abc"]
    expected = run(make_engine(), requests[1:])
    engine = make_engine(max_tokens_per_round=8)
    answers = run(engine, requests, aborts=[(round_index, "a")])
    assert {name: answers[name] for name in "bc"} == expected
    assert engine.num_used_kv_tokens == 0


def count_tokens(engine, requests):
    """New tokens of every forward."""
    lengths = []
    hook = MODEL.model.embed_tokens.register_forward_hook(
        lambda module, args, output: lengths.append(output.shape[1])
    )
    run(engine, requests)
    hook.remove()
    return lengths


def test_forks_and_later_requests_share_a_prompt():
    params = SamplingParams(max_new_tokens=4, rule="steps", steps=1, ignore_eos=True)
    prompt = [[9 + i for i in range(40)]]
    engine = make_engine()
    forks = [Request(request_id=name, prompt=prompt, params=params) for name in "abcd"]
    for request in forks:
        engine.add_request(request)
    engine.step()
    engine = make_engine()
    assert count_tokens(engine, forks) == [40 + 4 * 4]  # one prompt, four blocks, one forward
    longer = Request(request_id="e", prompt=[*prompt, [5]], params=params)
    assert count_tokens(engine, [longer]) == [1 + 4]
    salted = Request(request_id="f", prompt=prompt, params=params, salt="somebody else")
    assert count_tokens(engine, [salted]) == [40 + 4]


def test_forks_hold_a_prompt_once():
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    engine = make_engine()
    for name in "abcd":
        engine.add_request(Request(request_id=name, prompt=[[9] * 40], params=params))
    engine.step()
    assert engine.num_used_kv_tokens == 40 + 4 * 8


def test_an_answer_is_found_when_it_comes_back_in_a_prompt():
    params = SamplingParams(max_new_tokens=12, temperature=1.0, ignore_eos=True)
    engine, prompt = make_engine(), [[9 + i for i in range(8)]]
    answer = run(engine, [Request(request_id="a", prompt=prompt, params=params)])["a"][0]
    follow_up = Request(request_id="b", prompt=[*prompt, [*answer], [11]], params=params)
    engine.add_request(follow_up)
    (output,) = engine.step()
    assert output.num_cached_tokens == 8 + 8  # the last block of an answer is never stored


def test_long_prompts_come_in_chunks_and_stall_nobody():
    params = SamplingParams(max_new_tokens=8, rule="steps", ignore_eos=True)
    requests = [
        Request(request_id="short", prompt=[[9]], params=params),
        Request(request_id="long", prompt=[[9 + i for i in range(40)]], params=params),
    ]
    lengths = count_tokens(make_engine(max_tokens_per_round=20), requests)
    assert lengths[0] == 1 + 4 + 12  # the short one denoises at once
    assert max(lengths) <= 20


def test_a_full_store_lets_requests_wait_and_refuses_what_never_fits():
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    engine = make_engine(kv_tokens=40)
    with pytest.raises(ValueError, match=r"kv_tokens=40"):
        engine.add_request(Request(request_id="x", prompt=[[9] * 33], params=params))
    requests = [Request(request_id=str(i), prompt=[[9 + i] * 20], params=params) for i in range(5)]
    assert len(run(engine, requests)) == 5
    assert engine.num_used_kv_tokens == 0


def test_mask_text_in_a_prompt_is_ordinary_text():
    """It is stored, seen and never filled in."""
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    prompts = [[[9, MASK, 10, 11, MASK]], [[9, 12, 10, 11, 12]]]
    answers = [
        run(make_engine(), [Request(request_id="a", prompt=p, params=params)]) for p in prompts
    ]
    assert answers[0] != answers[1]
    engine = make_engine()
    engine.add_request(Request(request_id="a", prompt=prompts[0], params=params))
    (output,) = engine.step()
    assert output.canvas.count(None) == 3 and len(output.canvas) == 4


def test_the_model_itself_stays_as_it_is():
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    ids = torch.arange(8, 20)[None]
    logits = MODEL(ids).logits
    run(
        make_engine(),
        [Request(request_id="a", prompt=[[9]], params=SamplingParams(max_new_tokens=4))],
    )
    assert torch.equal(MODEL(ids).logits, logits)
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
