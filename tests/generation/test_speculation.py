"""Rule ``speculate`` writes what rule ``ar`` writes, and ``ar`` what the AR model writes."""

import copy
import itertools
import random
import statistics
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.config import LoraSection
from a2d_ray.config.errors import OptionError
from a2d_ray.diffusion.decoding import gumbel_starts, token_gumbel
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine import drafting as drafting_module
from a2d_ray.generation.engine import measuring
from a2d_ray.generation.engine.drafting import (
    PROBED_ROUNDS,
    Acceptance,
    Costs,
    Drafter,
    best_plan,
)
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.generation.reference import sample
from a2d_ray.models.architectures import ARCHITECTURES
from a2d_ray.models.contract import Contract
from a2d_ray.models.gated_lora import (
    add_gated_adapters,
    gate_of,
    gated_linears,
    settle_mask_row,
)
from tests.generation.test_engine_laws import LAW
from tests.tiny import tiny_a2d_model, tiny_ar_model

MASK, EOS = 300, 7
NAMES = [row.ar_model_type for row in ARCHITECTURES]
CAUSAL = Contract(
    objective="bd3lm",
    mask_token_id=MASK,
    block_size=4,
    clean_attention="causal",
    ar_mode="trained",
)
SHIFTED = CAUSAL.model_copy(update={"right_shift_logits": True, "block_grid": "absolute"})
MODEL = tiny_a2d_model("llama")
PROMPT = [[5, 6, 8, 9, 10], [11], [12, 13, 14, 15, 16, 17]]


class OddFirst:
    """Token ids that are odd and even in turns, then the end."""

    def __init__(self, length):
        self.text, self.length = [], length

    def allowed(self):
        mask = torch.zeros(320, dtype=torch.bool)
        mask[len(self.text) % 2 : MASK : 2] = True
        if len(self.text) >= self.length:
            mask[:] = False
            mask[EOS] = True
        return mask

    def allowed_after(self, token_ids):
        ahead, found = copy.deepcopy(self), []
        for token_id in token_ids:
            if not ahead.accept(token_id):
                break
            found.append(ahead.allowed())
        return found

    def accept(self, token_id):
        is_allowed = bool(self.allowed()[token_id])
        if is_allowed:
            self.text.append(token_id)
        return is_allowed


def forward_of(model):
    def forward(ids_T, mask_TT):
        return model(input_ids=ids_T[None], attention_mask=mask_TT[None, None]).logits[0]

    return forward


def make_engine(model=MODEL, contract=CAUSAL, **options):
    return Engine(model, contract, eos_ids={EOS}, max_length=256, options=EngineOptions(**options))


def run(engine, *requests, arrivals=()):
    """(tokens, their log-probabilities, last output) by id; request i joins in round i."""
    found = {request.request_id: ([], [], None) for request in requests}
    todo, round_index = list(requests), 0
    while todo or engine.has_unfinished():
        while todo and (not arrivals or arrivals[len(requests) - len(todo)] <= round_index):
            engine.add_request(todo.pop(0))
        for output in engine.step():
            tokens, logprobs, _ = found[output.request_id]
            tokens += output.token_ids
            logprobs += output.logprobs or ()
            found[output.request_id] = (tokens, logprobs, output)
        round_index += 1
        assert round_index < 5_000, "the engine stalls"
    assert engine.num_used_kv_tokens == 0
    return found


def answer(params, prompt=PROMPT, *, model=MODEL, contract=CAUSAL, grammar=None, choice=0):
    request = Request(request_id="a", prompt=prompt, params=params, grammar=grammar, choice=choice)
    return run(make_engine(model, contract), request)["a"]


# The AR mode.


@pytest.mark.parametrize("name", NAMES)
def test_ar_is_greedy_generation_by_transformers(name):
    ar_model, model = tiny_ar_model(name), tiny_a2d_model(name)
    prompt = [t for segment in PROMPT for t in segment]
    expected = ar_model.generate(
        torch.tensor([prompt]),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=EOS,
        suppress_tokens=[MASK],
        pad_token_id=EOS,
    )[0, len(prompt) :].tolist()
    expected = expected[: expected.index(EOS)] if EOS in expected else expected
    params = SamplingParams(rule="ar", max_new_tokens=40)
    original = CAUSAL.model_copy(update={"objective": None, "ar_mode": "original"})
    assert answer(params, model=model, contract=original)[0] == expected
    assert sample(forward_of(model), PROMPT, params, original, eos_ids=[EOS]).token_ids == expected


@pytest.mark.parametrize("rule", ["ar", "speculate"])
def test_logprobs_are_those_of_one_causal_forward(rule):
    ids, logprobs, _ = answer(
        SamplingParams(rule=rule, max_new_tokens=30, temperature=1.0, logprobs=3, ignore_eos=True)
    )
    prompt = [t for segment in PROMPT for t in segment]
    logits = tiny_ar_model("llama")(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logits[:, MASK] = -torch.inf
    wanted = logits.log_softmax(-1)
    for row, token, found in zip(wanted, ids, logprobs, strict=True):
        assert found.token_id == token
        assert found.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [i for i, _ in found.top] == row.topk(3).indices.tolist()


@pytest.mark.parametrize("budget", [7, 512])
@pytest.mark.parametrize("rule", ["ar", "speculate"])
def test_a_prompt_is_scored_exactly(rule, budget):
    params = SamplingParams(rule=rule, max_new_tokens=8, prompt_logprobs=2, ignore_eos=True)
    prompt = [[9 + i for i in range(40)], [5, 6]]
    ids = [t for segment in prompt for t in segment]
    logits = tiny_ar_model("llama")(torch.tensor([ids])).logits[0, :-1]
    logits[:, MASK] = -torch.inf
    wanted = logits.log_softmax(-1)
    engine = make_engine(max_tokens_per_round=budget)
    plain = answer(SamplingParams(rule="ar", max_new_tokens=8, ignore_eos=True), prompt)[0]
    for name in "ab":  # the second time the prompt is in the prefix cache
        request = Request(request_id=name, prompt=prompt, params=params)
        tokens, _, last = run(engine, request)[name]
        assert tokens == plain
        assert [scored.token_id for scored in last.prompt_logprobs] == ids[1:]
        for row, scored in zip(wanted, last.prompt_logprobs, strict=True):
            assert scored.logprob == pytest.approx(row[scored.token_id].item(), abs=1e-4)
            assert [i for i, _ in scored.top] == row.topk(2).indices.tolist()


# Speculation writes the same.

OPTIONS = [
    {},
    {"logit_bias": {33: 4.0}},  # the same token again and again: drafts are accepted
    {"temperature": 1.0},
    {"temperature": 3.0, "seed": 2},  # the noise decides, and it is the same for drafts
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 5, "min_p": 0.01},
    {"logit_bias": {33: 4.0}, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    {"temperature": 3.0, "presence_penalty": 0.3, "min_tokens": 20, "stop_token_ids": [40, 50]},
    {"temperature": 3.0, "stop_token_ids": list(range(0, 60, 3))},
    {"temperature": 3.0, "ignore_eos": True, "suppress_tokens": [33, 34]},
]


@pytest.mark.parametrize(
    ("name", "shape", "contract"),
    [
        *itertools.product(NAMES, ["tree"], [CAUSAL]),
        *itertools.product(NAMES[:1], ["linear"], [CAUSAL, SHIFTED]),
        *itertools.product(NAMES[1:], ["linear"], [SHIFTED]),
    ],
)
def test_speculate_is_ar_and_the_engine_is_the_reference(name, shape, contract):
    model = tiny_a2d_model(name)
    num_accepted = 0
    cases = list(enumerate(OPTIONS))
    for index, options in cases if name == NAMES[0] else cases[1::3]:  # no option knows a family
        asked = {"max_new_tokens": 30, "logprobs": 1, **options}
        plain = answer(SamplingParams(rule="ar", **asked), model=model, contract=contract)
        drafting = {"draft_tokens": (3, 6, 1)[index % 3], "draft_shape": shape}
        params = SamplingParams(rule="speculate", **asked, **drafting)
        found = answer(params, model=model, contract=contract)
        assert found[0] == plain[0]
        assert [p.logprob for p in found[1]] == pytest.approx(
            [p.logprob for p in plain[1]], abs=1e-4
        )
        assert found[2].finish_reason == plain[2].finish_reason
        slow = sample(forward_of(model), PROMPT, params, contract, eos_ids=[EOS])
        assert (slow.token_ids, slow.num_forwards) == (found[0], found[2].num_forwards)
        num_accepted += found[2].num_accepted
    assert num_accepted > 10


segments = st.lists(st.lists(st.integers(8, 250), min_size=1, max_size=25), max_size=3)
settings_of_a_request = st.builds(
    lambda options, **others: {**options, **others},
    st.sampled_from(OPTIONS),
    max_new_tokens=st.integers(1, 40),
)
drafting = st.fixed_dictionaries(
    {
        "draft_tokens": st.sampled_from([None, 1, 2, 5, 16]),
        "draft_shape": st.sampled_from(["auto", "linear", "tree"]),
    }
)
jobs = st.lists(
    st.tuples(segments, settings_of_a_request, drafting, st.integers(0, 12)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("contract", [CAUSAL, SHIFTED], ids=["in place", "shifted"])
@LAW
@given(
    jobs=jobs,
    options=st.fixed_dictionaries(
        {
            "max_running": st.integers(1, 8),
            "max_tokens_per_round": st.sampled_from([1, 7, 40, 512]),
            "kv_tokens": st.sampled_from([420, 4_096]),
            "prefix_cache": st.booleans(),
            "fused_commit": st.booleans(),
        }
    ),
)
def test_nothing_beside_a_request_changes_its_answer(contract, jobs, options):
    alone, requests = {}, []
    for index, (prompt, asked, drafts, _) in enumerate(jobs):
        least = min(asked.get("min_tokens", 0), asked["max_new_tokens"])
        asked = {**asked, "min_tokens": least}
        params = SamplingParams(rule="ar", **asked)
        alone[str(index)] = answer(params, prompt, contract=contract)[0]
        params = SamplingParams(rule="speculate", **asked, **drafts)
        requests.append(Request(request_id=str(index), prompt=prompt, params=params))
    engine = make_engine(contract=contract, **options)
    for _ in range(2):  # the second time on what the prefix cache holds
        found = run(engine, *requests, arrivals=sorted(arrival for *_, arrival in jobs))
        assert {name: tokens for name, (tokens, *_) in found.items()} == alone


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_grammar_binds_every_token(temperature):
    given = {"max_new_tokens": 40, "temperature": temperature}
    plain, _, _ = answer(SamplingParams(rule="ar", **given), grammar=OddFirst(20))
    assert [token % 2 for token in plain] == [0, 1] * 10
    found, _, last = answer(SamplingParams(rule="speculate", **given), grammar=OddFirst(20))
    assert found == plain and last.finish_reason == "stop"
    params = SamplingParams(rule="speculate", draft_tokens=3, **given)
    slow = sample(forward_of(MODEL), PROMPT, params, CAUSAL, eos_ids=[EOS], grammar=OddFirst(20))
    assert slow.token_ids == plain


def test_each_of_n_answers_has_its_own_draws():
    given = {"max_new_tokens": 20, "temperature": 3.0}
    answers = []
    for choice in range(3):
        plain = answer(SamplingParams(rule="ar", **given), choice=choice)[0]
        assert answer(SamplingParams(rule="speculate", **given), choice=choice)[0] == plain
        answers.append(tuple(plain))
    assert len(set(answers)) == 3


def test_the_noise_draws_as_softmax_says():

    def noise_at(positions, vocab_size, **names):
        return token_gumbel(gumbel_starts(positions, **names), vocab_size)

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    drawn = (logits + noise_at(torch.arange(40_000), 5, seed=3)).argmax(-1)
    shares = drawn.bincount(minlength=5) / len(drawn)
    assert shares.tolist() == pytest.approx(logits.softmax(-1).tolist(), abs=0.01)
    noise = noise_at(torch.arange(64), 1_000, seed=3)
    assert noise.mean() == pytest.approx(0.5772, abs=0.02)
    assert noise.var() == pytest.approx(torch.pi**2 / 6, abs=0.05)
    assert torch.equal(noise[7:9, :40], noise_at(torch.tensor([7, 8]), 40, seed=3))
    others = {"seed": {"seed": 4}, "choice": {"seed": 3, "choice": 1}}
    for values in others.values():
        other = noise_at(torch.arange(64), 1_000, **values)
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_gated_adapters_draft_and_leave_the_answer_alone(name):
    """The engine counts the forwards of the reference, whose drafts the adapters make."""
    lora = LoraSection(r=4, alpha=8, noised_only=True)
    model = tiny_a2d_model(name)
    add_gated_adapters(model, lora, mask_id=MASK, base="base")
    settle_mask_row(model)
    generator = torch.Generator().manual_seed(1)
    for parts in gated_linears(model).values():
        for weight in (parts.a_rI, parts.b_Or):
            weight.data.copy_(torch.randn(weight.shape, generator=generator))
    gate = gate_of(model)

    def forward(ids_T, mask_TT):
        with gate.opened((ids_T == MASK)[None]):
            return forward_of(model)(ids_T, mask_TT)

    counts = []
    for shape in ("linear", "tree"):
        asked = {"max_new_tokens": 60, "temperature": 2.0, "ignore_eos": True}
        plain = answer(SamplingParams(rule="ar", **asked), model=tiny_a2d_model(name))
        params = SamplingParams(rule="speculate", draft_tokens=3, draft_shape=shape, **asked)
        found = answer(params, model=model)
        slow = sample(forward, PROMPT, params, CAUSAL, eos_ids=[EOS])
        assert found[0] == plain[0] == slow.token_ids
        assert found[2].num_forwards == slow.num_forwards
        unadapted = answer(params, model=tiny_a2d_model(name))
        counts.append(found[2].num_forwards != unadapted[2].num_forwards)
    assert any(counts), "the adapters act on no draft"


@pytest.mark.parametrize("shape", ["linear", "tree"])
@pytest.mark.parametrize("contract", [CAUSAL, SHIFTED])
def test_a_round_reads_the_head_once_where_few_drafts_are_prepared(shape, contract):
    params = SamplingParams(
        rule="speculate", draft_tokens=3, draft_shape=shape, max_new_tokens=40, temperature=1.0
    )
    found = []
    for most_spare_rows in (0, 24):
        engine = make_engine(contract=contract)
        runner = engine._runner
        runner.most_spare_rows = most_spare_rows
        calls = []
        logits_of = runner._logits_of
        runner._logits_of = lambda x, logits_of=logits_of, calls=calls: (
            calls.append(len(x)) or logits_of(x)
        )
        requests = [
            Request(request_id=str(n), prompt=[[9 + n]], params=params)
            for n in range(2 if shape == "linear" else 1)
        ]
        answers = run(engine, *requests)
        found.append({name: (one[0], one[2].num_accepted) for name, one in answers.items()})
        assert (
            len(calls) == engine.num_rounds if most_spare_rows else len(calls) > engine.num_rounds
        )
    assert found[0] == found[1]


# What is stored.


def stored_slots(engine):
    """Slots that hold something which may be read again."""
    slots = set()
    for sequence in engine._scheduler.running.values():
        storage = sequence._storage
        own = [i for start, stop in storage._own_runs for i in range(start, stop)]
        slots.update(own[: sequence._num_kept])
        for page in storage._pages:
            slots.update(i for start, stop in page.runs for i in range(start, stop))
    for page in engine._table._pages.values():
        if page.is_filled:
            slots.update(i for start, stop in page.runs for i in range(start, stop))
    return slots


@pytest.mark.parametrize("shape", ["linear", "tree"])
def test_keys_and_values_of_masks_and_refused_drafts_are_never_read(shape):
    """They are poisoned after every round."""
    params = SamplingParams(
        rule="speculate", draft_tokens=4, draft_shape=shape, max_new_tokens=60, temperature=3.0
    )
    engine = make_engine(max_tokens_per_round=24)
    expected = {str(n): answer(params, [[9 + n] * (3 + 20 * n)])[0] for n in range(3)}
    for n in range(3):
        prompt = [[9 + n] * (3 + 20 * n)]
        engine.add_request(Request(request_id=str(n), prompt=prompt, params=params))
    found = {name: [] for name in expected}
    store = engine._runner._store
    num_poisoned = 0
    while engine.has_unfinished():
        for output in engine.step():
            found[output.request_id] += output.token_ids
        poisoned = torch.ones(store._values[0].shape[1], dtype=torch.bool)
        poisoned[sorted(stored_slots(engine))] = False
        num_poisoned += int(poisoned.sum())
        for keys, values in zip(store._keys, store._values, strict=True):
            keys[:, : len(poisoned)][:, poisoned] = torch.nan
            values[:, poisoned] = torch.nan
    assert found == expected and num_poisoned


def test_whole_pages_of_prompt_and_answer_are_found_again():
    params = SamplingParams(rule="speculate", max_new_tokens=40, temperature=3.0, ignore_eos=True)
    engine = make_engine()
    prompt = [[9 + i for i in range(30)]]
    tokens, _, last = run(engine, Request(request_id="a", prompt=prompt, params=params))["a"]
    assert last.num_cached_tokens == 0
    again = [*prompt, tokens, [8]]
    expected = answer(params, again)[0]
    found, _, last = run(engine, Request(request_id="b", prompt=again, params=params))["b"]
    assert (found, last.num_cached_tokens) == (expected, 64)
    other = Request(request_id="c", prompt=again, params=params, salt="somebody else")
    assert run(engine, other)["c"][2].num_cached_tokens == 0


@pytest.mark.parametrize("num_prompt", [0, 1, 16, 17, 18])
def test_prompts_around_a_page(num_prompt):
    prompt = [[9 + i for i in range(num_prompt)]] if num_prompt else []
    given = {"max_new_tokens": 24, "temperature": 1.0, "ignore_eos": True}
    params = SamplingParams(rule="ar", **given)
    expected = sample(forward_of(MODEL), prompt, params, CAUSAL, eos_ids=[EOS]).token_ids
    assert answer(params, prompt)[0] == expected
    assert answer(SamplingParams(rule="speculate", **given), prompt)[0] == expected


@pytest.mark.parametrize("num_requests", [300, pytest.param(2_000, marks=pytest.mark.slow)])
def test_soak_of_requests_among_other_rules(num_requests):
    """No leak, no stall, no neighbour effect, whatever is aborted and wherever it was."""
    rng = random.Random(0)
    shared = [[rng.randrange(8, 250) for _ in range(n)] for n in (3, 8, 21, 40)]
    engine = make_engine(kv_tokens=1_500, max_running=24, max_tokens_per_round=96)

    def make_request(name):
        prompt = [rng.choice(shared)] if rng.random() < 0.6 else []
        prompt += [[rng.randrange(8, 250) for _ in range(rng.randrange(1, 16))]]
        rule = rng.choice(["speculate", "speculate", "speculate", "ar", "threshold", "prefix"])
        options = {}
        if rule == "speculate":
            options["draft_tokens"] = rng.choice([None, 1, 3, 5])
            options["draft_shape"] = rng.choice(["auto", "linear", "tree"])
        params = SamplingParams(
            rule=rule,
            max_new_tokens=rng.randrange(1, 25),
            temperature=rng.choice([0.0, 1.0, 3.0]),
            seed=rng.randrange(3),
            ignore_eos=rng.random() < 0.5,
            stop_token_ids=[rng.randrange(250)] if rng.random() < 0.3 else [],
            **options,
        )
        return Request(request_id=name, prompt=prompt, params=params)

    requests = {str(i): make_request(str(i)) for i in range(num_requests)}
    waiting, alive, answers, since, round_index = list(requests), {}, {}, {}, 0
    while waiting or engine.has_unfinished():
        for _ in range(rng.randrange(9)):
            if waiting:
                name = waiting.pop()
                engine.add_request(requests[name])
                alive[name], since[name] = [], round_index
        if alive and rng.random() < 0.3:
            name = rng.choice(list(alive))
            engine.abort(name)
            del alive[name]
        for output in engine.step():
            alive[output.request_id] += output.token_ids
            if output.finish_reason:
                answers[output.request_id] = alive.pop(output.request_id)
        round_index += 1
        assert all(round_index - since[name] < 1_500 for name in alive), "a request stalls"
    assert engine.num_used_kv_tokens == 0
    assert 0.75 * num_requests < len(answers) < num_requests
    for name in rng.sample(sorted(answers), num_requests // 30):
        assert run(make_engine(), requests[name])[name][0] == answers[name]


# What it costs.


class Planted:
    """Stands for the model: the AR mode writes 20 + position, drafts agree with probability p."""

    def __init__(self, p):
        self.p, self.random = p, random.Random(0)

    config = SimpleNamespace()

    def base_model(self, input_ids, position_ids, **_):
        """Hidden states that say where they are, and whether they draft."""
        hidden = torch.stack([position_ids, input_ids == MASK], dim=-1)
        return SimpleNamespace(last_hidden_state=hidden.float())

    def logits_of(self, hidden):
        tokens = []
        for position, drafts in hidden.int().tolist():
            if drafts:
                is_wrong = self.random.random() > self.p
                tokens.append((21 if is_wrong else 20) + position % 200)
            else:
                tokens.append(20 + (position + 1) % 200)
        return torch.nn.functional.one_hot(torch.tensor(tokens), 320).float() * 9


@pytest.mark.parametrize(("num_drafts", "p"), [(1, 0.3), (3, 0.8), (7, 0.3), (7, 0.95)])
def test_tokens_per_forward_follow_from_the_acceptance(num_drafts, p):
    """N - 1 drafts: linear (2 + p + ... + p^(N-2)) / (2 - p^(N-1)), tree 1 + p + ... + p^(N-1)."""
    tree = sum(p**i for i in range(num_drafts + 1))
    linear = (1 + sum(p**i for i in range(num_drafts))) / (2 - p**num_drafts)
    for shape, wanted in (("tree", tree), ("linear", linear)):
        engine = make_engine(kv_tokens=4_000)
        engine._max_length = 4_000
        engine._runner.twin = planted = Planted(p)
        engine._runner._logits_of = planted.logits_of
        params = SamplingParams(
            rule="speculate",
            draft_tokens=num_drafts,
            draft_shape=shape,
            max_new_tokens=1_500,
            ignore_eos=True,
        )
        request = Request(request_id="a", prompt=[[9]], params=params)
        tokens, _, last = run(engine, request)["a"]
        assert len(tokens) / last.num_forwards == pytest.approx(wanted, rel=0.07)


def test_the_plan_follows_cost_load_and_acceptance():
    flat = Costs({1: 1.0, 32: 1.05, 64: 1.1, 256: 1.5}, {1: 0.1, 256: 0.2})
    plans = [best_plan(flat, 1, p) for p in (0.01, 0.5, 0.9)]
    assert [plan.num_drafts for plan in plans] == sorted(plan.num_drafts for plan in plans)
    assert plans[-1].num_drafts == 7 and len(plans[-1].ends) == 8
    steep = Costs({1: 1.0, 256: 256.0}, {1: 0.1, 256: 25.6})
    assert best_plan(steep, 1, 0.9).num_drafts == 0
    knee = Costs({1: 1.0, 16: 1.1, 256: 17.0}, {1: 0.1, 16: 0.1, 256: 1.6})
    sizes = [best_plan(knee, running, 0.8).num_drafts for running in (1, 2, 4, 16)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1 and sizes[-1] == 0
    drawing = Costs({1: 1.0, 16: 1.1, 256: 17.0}, {1: 0.1, 16: 0.1, 256: 1.6}, draw_s=1.0)
    drawn, likeliest = (best_plan(drawing, 1, 0.8, is_drawn=flag) for flag in (True, False))
    assert drawn.num_drafts < likeliest.num_drafts == sizes[0]
    crowd = Costs({1: 1.0, 16: 1.1, 256: 17.0}, {1: 0.1, 16: 0.1, 256: 1.6}, request_s=1.0)
    alone, together = ([best_plan(costs, n, 0.8) for costs in (knee, crowd)] for n in (1, 16))
    assert alone[0] == alone[1], "one request pays for no others"
    assert together[0].num_drafts == 0 < together[1].num_drafts, "a round is dear without drafts"
    heavy = {1: 1.0, 24: 1.1, 256: 11.0}  # a head whose weights cost more than its rows
    twice, once = (Costs({1: 1.0, 256: 1.5}, heavy, most_spare_rows=most) for most in (0, 24))
    assert best_plan(twice, 1, 0.3).num_drafts == 0 < best_plan(once, 1, 0.3).num_drafts


def test_drafts_must_promise_more_than_they_may_lose(monkeypatch):
    chances = [i / 100 for i in range(1, 100)]
    drafting = {}
    for gain in (1.0, drafting_module.LEAST_GAIN):
        monkeypatch.setattr(drafting_module, "LEAST_GAIN", gain)
        costs = Costs({1: 1.0, 16: 1.1, 256: 17.0}, {1: 0.1, 16: 0.1, 256: 1.6})
        drafting[gain] = {p for p in chances if best_plan(costs, 4, p).num_drafts}
    wary, bold = sorted(drafting.values(), key=len)
    assert wary < bold


# Refusals.


@pytest.mark.parametrize(
    ("contract", "options", "words"),
    [
        ({"ar_mode": None}, {}, "needs an AR mode"),
        ({"objective": "mdlm", "ar_mode": None}, {}, "is an MDLM"),
        ({"objective": None}, {}, "converted but not trained"),
    ],
)
def test_a_model_without_an_ar_mode_refuses_by_name(contract, options, words):
    params = SamplingParams(rule="speculate", max_new_tokens=4)
    terms = CAUSAL.model_copy(update=contract)
    with pytest.raises(OptionError, match=words):
        answer(params, contract=terms)
    with pytest.raises(OptionError, match=words):
        sample(forward_of(MODEL), PROMPT, params, terms)


def test_holes_and_options_without_effect_are_refused():
    with pytest.raises(OptionError, match="fills no holes"):
        answer(SamplingParams(rule="ar"), [[9, None, 10]])
    for options in ({"block_size": 4}, {"cfg_scale": 1.0}, {"remask_threshold": 0.1}):
        with pytest.raises(OptionError, match="has no effect with rule=speculate"):
            SamplingParams(rule="speculate", **options)


KNEE = Costs({1: 1.0, 16: 1.1, 256: 17.0}, {1: 0.1, 16: 0.1, 256: 1.6})


def test_a_request_whose_drafts_failed_tries_again_now_and_then():
    """Without drafts its acceptance would stay what it was for ever."""
    drafter = Drafter(measure=lambda: KNEE, acceptance=Acceptance())
    own = Acceptance(accepted=0.1, refused=9.9)
    params = SamplingParams(rule="speculate")
    sizes = [drafter.plan(params, 0, own).num_drafts for _ in range(2 * PROBED_ROUNDS)]
    assert [n for n, size in enumerate(sizes, 1) if size] == [PROBED_ROUNDS, 2 * PROBED_ROUNDS]
    for _ in range(20):
        own.count(2, 0)
    assert drafter.plan(params, 0, own).num_drafts > 2
    busy = Drafter(measure=lambda: KNEE, acceptance=Acceptance(), num_running=64)
    hopeless = Acceptance(accepted=0.1, refused=9.9)
    assert not any(busy.plan(params, 0, hopeless).num_drafts for _ in range(PROBED_ROUNDS))


def test_a_new_request_begins_where_the_others_are_and_learns_faster():
    others = Acceptance(accepted=90.0, refused=10.0)
    own = others.of_a_request()
    assert own.p == pytest.approx(0.9)
    for acceptance in (own, others):
        acceptance.count(0, 1)
    assert own.p < others.p


def test_luck_in_a_short_answer_changes_no_plan():
    """Forty requests of eight rounds, whose drafts are all accepted with the same chance."""
    rng = random.Random(0)
    others = Acceptance(accepted=80.0, refused=20.0)
    estimates = []
    for _ in range(40):
        own = others.of_a_request()
        for _ in range(8):
            num_accepted = next((n for n in range(2) if rng.random() > others.p), 2)
            own.count(num_accepted, num_accepted < 2)
            estimates.append(own.p)
    assert statistics.pstdev(estimates) < 0.05


def test_costs_are_measured_once_per_model_and_ahead_where_drafts_are_the_default(monkeypatch):
    model, calls = tiny_a2d_model("llama", seed=7), []
    timed = measuring.timed
    monkeypatch.setattr(measuring, "timed", lambda *args: calls.append(1) or timed(*args))
    make_engine(model, CAUSAL.model_copy(update={"ar_mode": None})).warm_up()
    assert not calls, "a model without an AR mode drafts nothing"
    make_engine(model).warm_up()
    num_calls = len(calls)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)  # a step of training: the next engine packs it anew
    make_engine(model).warm_up()
    assert len(calls) == num_calls > 0
