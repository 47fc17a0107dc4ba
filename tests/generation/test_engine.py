"""The engine gives the reference sampler's tokens, whatever runs beside a request."""

import itertools

import pytest
import torch

from a2d_ray.config import AR_RULES, RULES
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine import runner, storage
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.generation.engine.sequence import Sequence
from a2d_ray.generation.reference import sample
from a2d_ray.models.architectures import ARCHITECTURES
from a2d_ray.models.contract import Contract
from tests.devices import CPU_AND_GPU
from tests.tiny import tiny_a2d_model

MASK, EOS = 300, 7
PROMPTS = [
    [[5, 6, 8, 9, 10], [11], [12, 13, 14, 15, 16, 17]],
    [[21, 22, 23]],
    [[9]],
    [[40 + i for i in range(19)], [3, 4]],
]


def contract(objective="bd3lm", grid="segment", block_size=4):
    return Contract(objective=objective, mask_token_id=MASK, block_size=block_size, block_grid=grid)


def forward_of(model):
    def forward(ids_T, mask_TT):
        return model(input_ids=ids_T[None], attention_mask=mask_TT[None, None]).logits[0]

    return forward


def run(engine):
    answers, last = {}, {}
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault(output.request_id, []).extend(output.token_ids)
            last[output.request_id] = output
    return answers, last


PARAMS = [
    SamplingParams(max_new_tokens=16, ignore_eos=True),
    SamplingParams(max_new_tokens=13, threshold=0.02, ignore_eos=True),
    SamplingParams(max_new_tokens=16, rule="steps", steps=8, ignore_eos=True),
    SamplingParams(max_new_tokens=10, rule="steps", remasking="random", seed=3, ignore_eos=True),
    SamplingParams(max_new_tokens=16, threshold=0.02, temperature=1.5, seed=4),
    SamplingParams(max_new_tokens=16, temperature=1.0, seed=5, stop_token_ids=[50, 60, 70, 80]),
    SamplingParams(max_new_tokens=9, rule="steps", steps=6, remasking="leftmost", ignore_eos=True),
    SamplingParams(max_new_tokens=16, rule="factor", factor=2.2, ignore_eos=True),
    SamplingParams(max_new_tokens=16, rule="frechet", delta=0.0, temperature=0.1),
    SamplingParams(max_new_tokens=16, rule="entropy_bound", gamma=6.0, repetition_penalty=1.3),
    SamplingParams(max_new_tokens=16, rule="entropy", entropy_threshold=5.5, frequency_penalty=0.5),
    SamplingParams(max_new_tokens=16, rule="klass", threshold=0.01, kl_threshold=0.1),
    SamplingParams(max_new_tokens=16, rule="prefix", threshold=0.008, logit_bias={33: 1.0}),
    SamplingParams(max_new_tokens=16, threshold=0.005, remask_threshold=0.008, top_k=5, seed=1),
    SamplingParams(
        max_new_tokens=16, rule="steps", steps=7, stochastic_transfer=True, temperature=2, min_p=0.1
    ),
]
PARAMS += [
    SamplingParams(max_new_tokens=8, rule=rule)
    for rule in RULES
    if rule not in {params.rule for params in PARAMS} | {*AR_RULES}
]


GRIDS = [("bd3lm", "segment"), ("bd3lm", "absolute"), ("bd3lm", "prompt_end"), ("mdlm", "segment")]
OTHERS = [row.ar_model_type for row in ARCHITECTURES if row.ar_model_type != "llama"]


@pytest.mark.parametrize(
    ("architecture", "objective", "grid"),
    [*(("llama", *grid) for grid in GRIDS), *((name, *GRIDS[1]) for name in OTHERS)],
)
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_engine_equals_reference_sampler(architecture, objective, grid, device):
    """Which runs on the CPU, in fp32."""
    model, terms = tiny_a2d_model(architecture), contract(objective, grid)
    there = model if device == "cpu" else tiny_a2d_model(architecture).to(device)
    engine = Engine(there, terms, eos_ids={EOS}, max_length=512)
    expected = {}
    for i, (prompt, params) in enumerate(itertools.product(PROMPTS, PARAMS)):
        engine.add_request(Request(request_id=str(i), prompt=prompt, params=params))
        expected[str(i)] = sample(forward_of(model), prompt, params, terms, eos_ids={EOS})
    answers, last = run(engine)
    for request_id, reference in expected.items():
        assert answers[request_id] == reference.token_ids
        assert last[request_id].finish_reason == reference.finish_reason
        assert last[request_id].num_forwards == reference.num_forwards
    assert {output.finish_reason for output in last.values()} == {"stop", "length"}


@pytest.mark.parametrize("objective", ["bd3lm", "mdlm"])
def test_answer_does_not_depend_on_neighbours_or_arrival(objective):
    model, params = tiny_a2d_model("llama"), SamplingParams(max_new_tokens=16, threshold=0.02)
    alone = {}
    for i, prompt in enumerate(PROMPTS):
        engine = Engine(model, contract(objective), eos_ids={EOS}, max_length=512)
        engine.add_request(Request(request_id=str(i), prompt=prompt, params=params))
        alone |= run(engine)[0]
    engine = Engine(
        model,
        contract(objective),
        eos_ids={EOS},
        max_length=512,
        options=EngineOptions(max_running=2),
    )
    together: dict[str, list[int]] = {}
    for i in reversed(range(len(PROMPTS))):  # one joins in every round
        engine.add_request(Request(request_id=str(i), prompt=PROMPTS[i], params=params))
        for output in engine.step():
            together.setdefault(output.request_id, []).extend(output.token_ids)
    for request_id, ids in run(engine)[0].items():
        together.setdefault(request_id, []).extend(ids)
    assert together == alone


def test_empty_prompt_is_allowed():
    # All masks of a lone block are alike, so greedy confidences tie: draw tokens instead.
    model, params = (
        tiny_a2d_model("llama"),
        SamplingParams(
            max_new_tokens=8, temperature=1.0, rule="steps", remasking="random", ignore_eos=True
        ),
    )
    engine = Engine(model, contract(), eos_ids={EOS}, max_length=512)
    engine.add_request(Request(request_id="a", prompt=[], params=params))
    expected = sample(forward_of(model), [], params, contract(), eos_ids={EOS})
    assert run(engine)[0]["a"] == expected.token_ids


def test_prompt_is_run_once():
    model = tiny_a2d_model("llama")
    lengths = []
    engine = Engine(model, contract(), eos_ids={EOS}, max_length=512)
    model.model.embed_tokens.register_forward_hook(lambda m, i, o: lengths.append(o.shape[1]))
    params = SamplingParams(max_new_tokens=12, rule="steps", ignore_eos=True)
    engine.add_request(Request(request_id="a", prompt=[[9] * 40], params=params))
    run(engine)
    one_block, fused_commit = 4, 8
    assert lengths == [44, *[one_block] * 3, *[fused_commit, *[one_block] * 3] * 2]


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_a_request_that_waits_for_room_is_built_once(monkeypatch, cfg_scale):
    """Canvas, tensors and hashes; and it is answered as if it had not waited."""
    built, hashed = [], []
    init, page_key = Sequence.__init__, storage.page_key

    def counting_init(self, request, *args):
        built.append(request.request_id)
        init(self, request, *args)

    def counting_key(*args):
        hashed.append(args)
        return page_key(*args)

    monkeypatch.setattr(Sequence, "__init__", counting_init)
    monkeypatch.setattr(storage, "page_key", counting_key)
    model, options = tiny_a2d_model("llama"), EngineOptions(kv_tokens=100)
    params = SamplingParams(max_new_tokens=16, cfg_scale=cfg_scale, ignore_eos=True)
    engine = Engine(model, contract(), eos_ids={EOS}, max_length=512, options=options)
    for name in "abcdef":
        engine.add_request(Request(request_id=name, prompt=[[ord(name)] * 20], params=params))
    first = {output.request_id: list(output.token_ids) for output in engine.step()}
    first_waiting = built[-1]
    engine.abort("f")
    engine.abort(first_waiting)
    answers, _ = run(engine)
    assert engine.num_rounds > 20
    assert sorted(built) == list("abcde")
    num_branches = 1 if cfg_scale == 0 else 2
    num_blocks = (20 + 16) // 4 - 1  # the last one of a canvas is never stored
    num_answered = 4
    assert len(hashed) == (num_answered * num_blocks + 20 // 4) * num_branches
    for name in set("abcde") - {first_waiting}:
        expected = sample(forward_of(model), [[ord(name)] * 20], params, contract(), eos_ids={EOS})
        assert first.get(name, []) + answers[name] == expected.token_ids


def test_logits_of_a_round_are_held_for_a_few_works_at_a_time(monkeypatch):
    model, guided = tiny_a2d_model("llama"), SamplingParams(max_new_tokens=12, cfg_scale=1.5)

    def answer() -> tuple[dict, int]:
        engine = Engine(model, contract("mdlm"), eos_ids={EOS}, max_length=512)
        head, sizes = engine._runner._logits_of, []
        engine._runner._logits_of = lambda rows_NH: sizes.append(len(rows_NH)) or head(rows_NH)
        for i, (prompt, params) in enumerate(itertools.product(PROMPTS, [*PARAMS, guided])):
            engine.add_request(Request(request_id=str(i), prompt=prompt, params=params))
        answers, _ = run(engine)
        return answers, max(sizes)

    expected, together = answer()
    monkeypatch.setattr(runner, "HEAD_ROWS", 20)
    answers, most = answer()
    assert answers == expected
    assert together > 100 and most <= 20


def test_abort_frees_a_request_and_leaves_the_others():
    model, params = tiny_a2d_model("llama"), SamplingParams(max_new_tokens=8, ignore_eos=True)
    engine = Engine(model, contract(), eos_ids={EOS}, max_length=512)
    for name in "ab":
        engine.add_request(Request(request_id=name, prompt=PROMPTS[0], params=params))
    engine.step()
    engine.abort("a")
    engine.abort("unknown")
    answers, _ = run(engine)
    assert "a" not in answers and engine.step() == [] and not engine.has_unfinished()


def test_mask_id_is_never_emitted():
    model = tiny_a2d_model("llama")
    with torch.no_grad():
        model.lm_head.weight[MASK] = 10 * model.lm_head.weight.abs().sum(0)
    engine = Engine(model, contract(), eos_ids={EOS}, max_length=512)
    params = SamplingParams(max_new_tokens=32, temperature=1.0, ignore_eos=True)
    engine.add_request(Request(request_id="a", prompt=[[MASK, 5]], params=params))
    assert MASK not in run(engine)[0]["a"]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([[5] * 500], {"max_new_tokens": 16}, r"prompt=500 tokens and max_new_tokens=16"),
        ([[320]], {}, "token id 320"),
        ([[5]], {"block_size": 8}, r"block_size=8 was not trained"),
    ],
)
def test_refuses_what_does_not_fit(prompt, params, message):
    terms = contract().model_copy(update={"block_sizes": (4,)})
    engine = Engine(tiny_a2d_model("llama"), terms, eos_ids={EOS}, max_length=512)
    with pytest.raises(ValueError, match=message):
        engine.add_request(Request(request_id="a", prompt=prompt, params=SamplingParams(**params)))


def test_untrained_model_asks_for_an_objective():
    with pytest.raises(ValueError, match="objective"):
        Engine(tiny_a2d_model("llama"), contract(None), eos_ids=(), max_length=8).add_request(
            Request(request_id="a", prompt=[], params=SamplingParams(max_new_tokens=4))
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("block_size", 0),
        ("rule", "x"),
        ("threshold", 2),
        ("temperature", -1),
        ("temperature", 1e-40),
        ("temperature", 1e40),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 1e40),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("logit_bias", {5: float("nan")}),
        ("cfg_scale", 1e38),
        ("gamma", float("inf")),
        ("steps", 10**12),
    ],
)
def test_params_refuse_bad_values(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_a_block_longer_than_the_model_is_refused():
    engine = Engine(tiny_a2d_model("llama"), contract(), eos_ids=(), max_length=64)
    params = SamplingParams(max_new_tokens=4, block_size=10**12)
    with pytest.raises(ValueError, match="block_size"):
        engine.add_request(Request(request_id="a", prompt=[], params=params))


class PoisonGrammar:
    """Raises at the third step."""

    def __init__(self):
        self.left = 3

    def allowed(self):
        self.left -= 1
        if not self.left:
            raise RuntimeError("poison")
        return torch.ones(320, dtype=torch.bool)

    def accept(self, token_id):
        return True


@pytest.mark.parametrize("objective", ["bd3lm", "mdlm"])
def test_a_request_that_fails_in_its_step_fails_alone(objective):
    """The others' answers do not change, and its pages come back."""
    model = tiny_a2d_model("llama")
    params = SamplingParams(max_new_tokens=16, rule="prefix", threshold=0.008, ignore_eos=True)
    alone = Engine(model, contract(objective), eos_ids={EOS}, max_length=512)
    engine = Engine(model, contract(objective), eos_ids={EOS}, max_length=512)
    for i, prompt in enumerate(PROMPTS):
        for each in (alone, engine):
            each.add_request(Request(request_id=str(i), prompt=prompt, params=params))
    poisoned = params.model_copy(update={"ignore_eos": False})
    engine.add_request(
        Request(request_id="x", prompt=[[30, 31]], params=poisoned, grammar=PoisonGrammar())
    )
    answers, last = run(engine)
    assert last["x"].finish_reason == "error"
    assert str(last["x"].error) == "poison"
    del answers["x"]
    assert answers == run(alone)[0]
    assert engine.num_used_kv_tokens == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_fail_their_request_and_no_other(value, temperature):
    """Weights that overflow for one token only; it is in one prompt only."""
    model = tiny_a2d_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[30] = value
    engine = Engine(model, contract(), eos_ids={EOS}, max_length=512)
    params = SamplingParams(max_new_tokens=8, temperature=temperature, ignore_eos=True)
    for name, prompt in (("good", [[20, 21, 22]]), ("bad", [[30]])):
        engine.add_request(Request(request_id=name, prompt=prompt, params=params))
    answers, last = run(engine)
    assert isinstance(last["bad"].error, FloatingPointError)
    assert len(answers["good"]) == 8
    assert engine.num_used_kv_tokens == 0


def test_canvas_confidence_is_that_of_commitment():
    """What a step commits beside its best token exceeds the threshold, and keeps its value."""
    threshold = 0.008
    params = SamplingParams(max_new_tokens=16, threshold=threshold, ignore_eos=True)
    engine = Engine(tiny_a2d_model("llama"), contract(block_size=8), eos_ids={EOS}, max_length=512)
    engine.add_request(Request(request_id="0", prompt=PROMPTS[0], params=params))
    before, num_parallel = (None,) * 8, 0
    while engine.has_unfinished():
        (output,) = engine.step()
        now = output.canvas_confidence
        assert [value is None for value in now] == [token is None for token in output.canvas]
        if None not in before:
            before = (None,) * 8
        new = sorted(v for old, v in zip(before, now, strict=True) if v is not None and old is None)
        assert all(old in (None, v) for old, v in zip(before, now, strict=True))
        assert all(threshold < value <= 1 for value in new[:-1])
        num_parallel, before = num_parallel + len(new) - 1, now
    assert num_parallel > 0
