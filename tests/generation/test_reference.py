"""Options of the reference sampler, on planted logits and on tiny models."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.generation.reference import sample
from a2d_ray.models.contract import Contract
from tests.closeness import assert_close
from tests.tiny import tiny_a2d_model

MASK, EOS, VOCAB = 300, 7, 320
MODEL = tiny_a2d_model("qwen3")
# All masks of a lone block are alike: rounding would decide which is the most confident.
NO_TIES = {"rule": "steps", "remasking": "random"}


def contract(objective="bd3lm", **terms):
    return Contract(objective=objective, mask_token_id=MASK, **{"block_size": 4, **terms})


def forward(ids_T, mask_TT):
    return MODEL(input_ids=ids_T[None], attention_mask=mask_TT[None, None]).logits[0]


def planted(*rows, size=8):
    """A model that always says the same: rows of {token: logit}, one per new position."""

    def forward(ids_T, mask_TT):
        logits = torch.zeros(len(ids_T), size)
        for index, row in enumerate(rows):
            for token, logit in row.items():
                logits[len(ids_T) - len(rows) + index, token] = logit
        return logits

    return forward


def tokens(model, *, prompt=(), mask_id=0, eos_ids=(), grammar=None, block_size=4, **options):
    terms = Contract(objective="bd3lm", mask_token_id=mask_id, block_size=block_size)
    params = SamplingParams(**{"max_new_tokens": 4, "rule": "prefix", **options})
    got = sample(model, [prompt] if prompt else [], params, terms, eos_ids=eos_ids, grammar=grammar)
    return got.token_ids


FLAT = planted(*[{1: 3.0, 2: 2.0, 3: 1.0}] * 4)


def test_suppressed_tokens_are_not_chosen():
    assert tokens(FLAT) == [1, 1, 1, 1]
    assert tokens(FLAT, suppress_tokens=[1, 2]) == [3, 3, 3, 3]


def test_begin_suppressed_tokens_are_chosen_last():
    model = planted({1: 9.0, 2: 1.0}, {3: 2.0}, {3: 1.0}, {1: 9.0})
    terms = Contract(objective="bd3lm", mask_token_id=0, block_size=4)
    params = SamplingParams(max_new_tokens=4, rule="steps", begin_suppress_tokens=[1])
    history = sample(model, [], params, terms).history
    assert history == [[0, 3, 0, 0], [0, 3, 3, 0], [1, 3, 3, 0], [1, 3, 3, 1]]


def test_logit_bias_moves_a_choice():
    assert tokens(FLAT, logit_bias={3: 2.5, 1: -0.6}) == [3, 3, 3, 3]


def test_penalties_count_what_was_committed():
    """Prefix at threshold 1 commits one token at a time: 1 loses 0.6 for each that there is."""
    assert tokens(FLAT, threshold=1, frequency_penalty=0.6) == [1, 1, 2, 1]
    assert tokens(FLAT, threshold=1, presence_penalty=1.1) == [1, 2, 1, 1]


def test_repetition_penalty_counts_the_prompt_too():
    assert tokens(FLAT, repetition_penalty=2) == [1, 2, 1, 1]
    assert tokens(FLAT, prompt=[1], repetition_penalty=2) == [2, 1, 1, 1]


def test_min_tokens_puts_off_the_end():
    model = planted(*[{5: 3.0, 2: 1.0}] * 4)
    assert tokens(model, eos_ids=[5]) == []
    assert tokens(model, eos_ids=[5], min_tokens=2) == [2, 2]
    assert tokens(model, eos_ids=[5], ignore_eos=True) == [5, 5, 5, 5]


def test_the_window_ends_where_the_answer_ends():
    model = planted({1: 9.0}, {5: 9.0}, *[{1: 1.0}] * 6)
    terms = Contract(objective="bd3lm", mask_token_id=0, block_size=4)
    got = sample(model, [], SamplingParams(max_new_tokens=8), terms, eos_ids=[5])
    assert (got.token_ids, got.finish_reason, got.num_forwards) == ([1], "stop", 1)
    assert got.canvas[2:] == [0] * 6


class Digits:
    """Sums: a digit, then "+" and a digit as often as wished, then the end."""

    PLUS, END, SIZE = 5, 6, 8

    def __init__(self):
        self.text = []

    def allowed(self):
        mask = torch.zeros(self.SIZE, dtype=torch.bool)
        mask[[self.PLUS, self.END] if len(self.text) % 2 else [1, 2, 3, 4]] = True
        return mask

    def accept(self, token_id):
        is_allowed = bool(self.allowed()[token_id])
        if is_allowed:
            self.text.append(token_id)
        return is_allowed


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    threshold=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    block_size=st.integers(1, 6),
)
def test_what_a_grammar_allows_and_nothing_else(seed, threshold, block_size):
    generator = torch.Generator().manual_seed(seed)
    table = 3 * torch.randn(64, 8, generator=generator)
    grammar = Digits()
    answer = tokens(
        lambda ids_T, mask_TT: table[: len(ids_T)].clone(),
        grammar=grammar,
        eos_ids=[Digits.END],
        threshold=threshold,
        block_size=block_size,
        max_new_tokens=20,
        temperature=1.0,
        seed=seed,
    )
    assert all(t in (1, 2, 3, 4) for t in answer[::2])
    assert all(t == Digits.PLUS for t in answer[1::2])
    # The last block is denoised whole, and may hold more than the answer takes.
    assert grammar.text[: len(answer)] == answer
    assert len(answer) == 20 or grammar.text == [*answer, Digits.END]


def test_a_grammar_that_is_stuck_ends_the_answer():
    class Stuck(Digits):
        def allowed(self):
            return torch.zeros(8, dtype=torch.bool) if self.text else super().allowed()

    answer = tokens(FLAT, grammar=Stuck(), eos_ids=[6])
    assert answer == [1]


def test_a_grammar_makes_several_commits_at_once():
    class Anything(Digits):
        def allowed(self):
            return torch.ones(8, dtype=torch.bool)

    sure = planted({1: 30.0}, {2: 30.0}, {3: 30.0}, {4: 30.0})
    terms = Contract(objective="bd3lm", mask_token_id=0, block_size=4)
    params = SamplingParams(max_new_tokens=4, rule="prefix")
    got = sample(sure, [], params, terms, eos_ids=[6], grammar=Anything())
    assert (got.token_ids, got.num_forwards) == ([1, 2, 3, 4], 1)


@pytest.mark.parametrize(
    ("options", "prompt", "message"),
    [
        ({"rule": "threshold"}, [1], "rule prefix"),
        ({"ignore_eos": True}, [1], "ignore_eos"),
        ({}, [1, None], "holes"),
    ],
)
def test_a_grammar_needs_rule_prefix_an_end_and_no_holes(options, prompt, message):
    with pytest.raises(ValueError, match=message):
        tokens(FLAT, prompt=prompt, grammar=Digits(), eos_ids=[6], **options)
    engine = Engine(MODEL, contract(), eos_ids={EOS}, max_length=512)
    params = SamplingParams(**{"rule": "prefix", **options})
    with pytest.raises(ValueError, match=message):
        engine.add_request(
            Request(request_id="a", prompt=[prompt], params=params, grammar=Digits())
        )


# Guidance.

LONG = SamplingParams(max_new_tokens=12, rule="steps", ignore_eos=True)


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_guidance_without_effect(objective):
    """Scale 0 is none at all; nor is there any if both runs see the whole prompt."""
    terms, prompt = contract(objective), [[5, 6, 8, 9, 10]]
    plain = sample(forward, prompt, LONG, terms)
    guided = sample(forward, prompt, LONG.model_copy(update={"cfg_scale": 1.5}), terms)
    kept = LONG.model_copy(update={"cfg_scale": 1.5, "cfg_keep_tokens": (5, 6, 8, 9, 10)})
    assert sample(forward, prompt, kept, terms).history == plain.history != guided.history


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize(
    ("objective", "grid"), [("bd3lm", "segment"), ("bd3lm", "absolute"), ("mdlm", "segment")]
)
def test_guided_engine_equals_sampler(objective, grid, is_shifted):
    """Both branches in one forward, prompt in chunks, beside requests without guidance."""
    terms = contract(objective, block_grid=grid, right_shift_logits=is_shifted)
    engine = Engine(
        MODEL, terms, eos_ids={EOS}, max_length=512, options=EngineOptions(max_tokens_per_round=9)
    )
    expected, answers = {}, {}
    for i, prompt in enumerate([[[5, 6, 8, 9, 10, 11, 12]], [], [[5, 6, 8, None, 9, None]]]):
        for scale, kept in ((0.0, ()), (1.5, ()), (0.7, (6, 9))):
            options = {"max_new_tokens": 9, "cfg_scale": scale, "cfg_keep_tokens": kept}
            options |= {"threshold": 0.01} if prompt else NO_TIES
            params = SamplingParams(**options, ignore_eos=True)
            name = f"{i}-{scale}"
            expected[name] = sample(forward, prompt, params, terms, eos_ids={EOS}).token_ids
            engine.add_request(Request(request_id=name, prompt=prompt, params=params))
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault(output.request_id, []).extend(output.token_ids)
    assert answers == expected and engine.num_used_kv_tokens == 0


# Log-probabilities.


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_logprobs_are_those_of_the_step_that_committed(objective):
    params = LONG.model_copy(update={"logprobs": 3, "temperature": 0.8, "seed": 4})
    terms, prompt = contract(objective), [5, 6, 8]
    got = sample(forward, [prompt], params, terms)
    before = [MASK] * 12
    blocks = torch.tensor([0, 0, 0] + [1 + i // 4 for i in range(12)])
    blocks = blocks * (objective == "bd3lm")
    for after in got.history:
        (place,) = [i for i in range(12) if before[i] != after[i]]
        logits = forward(torch.tensor(prompt + before), blocks[None, :] <= blocks[:, None]).detach()
        logits[:, MASK] = -torch.inf
        logp = logits[3 + place].log_softmax(-1)
        token, logprob, top = got.logprobs[place]
        assert token == after[place]
        ids, values = zip((token, logprob), *top, strict=True)
        assert_close(torch.tensor(values), logp[list(ids)])
        assert_close(torch.tensor(values[1:]), logp.topk(3).values)
        before = after


# Choices.


def test_choices_have_draws_of_their_own():
    params = LONG.model_copy(update={"temperature": 1.0, "seed": 9})
    answers = [sample(forward, [[5]], params, contract(), choice=c).token_ids for c in (0, 1, 2, 0)]
    assert answers[0] == answers[3] and len(set(map(tuple, answers))) == 3


# Infill, and the engine.

TEXTS = [
    [[5, None, 8, None, None, 9, 10, 11, None]],
    [[None], [5, 6, 8, None, 9], [12, None, 14, 15, 16, 17, 18]],
    [[20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, None]],
]
FILLING = [
    SamplingParams(threshold=0.02, logprobs=2),
    SamplingParams(rule="steps", steps=3, temperature=0.7, seed=2),
    SamplingParams(rule="prefix", threshold=0.01, repetition_penalty=1.5),
]
JOBS = [
    *itertools.product(TEXTS, FILLING),
    *itertools.product([[[None] * 9]], [SamplingParams(**NO_TIES, logprobs=2), *FILLING[1:]]),
]


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize(
    ("objective", "grid"),
    [("bd3lm", "segment"), ("bd3lm", "absolute"), ("bd3lm", "prompt_end"), ("mdlm", "segment")],
)
def test_infill_keeps_the_text_and_engine_equals_sampler(objective, grid, is_shifted):
    terms = contract(objective, block_grid=grid, right_shift_logits=is_shifted)
    engine = Engine(MODEL, terms, eos_ids={EOS}, max_length=512)
    expected, answers, logprobs, last = {}, {}, {}, {}
    for i, (text, params) in enumerate(JOBS):
        expected[str(i)] = got = sample(forward, text, params, terms, eos_ids={EOS})
        flat = [token for segment in text for token in segment]
        assert len(got.token_ids) == len(flat) and MASK not in got.token_ids
        assert all(old in (None, new) for old, new in zip(flat, got.token_ids, strict=True))
        engine.add_request(Request(request_id=str(i), prompt=text, params=params))
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault(output.request_id, []).extend(output.token_ids)
            logprobs.setdefault(output.request_id, []).extend(output.logprobs or ())
            last[output.request_id] = output
    assert {i: s.token_ids for i, s in expected.items()} == answers
    assert all(last[i].num_denoise_steps == s.num_forwards for i, s in expected.items())
    for i, reference in expected.items():
        theirs = reference.logprobs[: len(logprobs[i])]
        assert [x.token_id for x in logprobs[i]] == [x.token_id for x in theirs]
        assert_close(*(torch.tensor([x.logprob for x in of]) for of in (logprobs[i], theirs)))
    assert engine.num_used_kv_tokens == 0


def test_mdlm_sees_what_follows_a_hole_and_bd3lm_does_not():
    texts = [[[5, None, None, 8, 30, 31, 32, end]] for end in (40, 41)]
    for objective, is_seen in (("mdlm", True), ("bd3lm", False)):
        params = SamplingParams(rule="steps", logprobs=0)
        first, second = (sample(forward, t, params, contract(objective)) for t in texts)
        assert (first.logprobs[1] != second.logprobs[1]) == is_seen


def test_a_mask_token_in_a_prompt_is_a_token():
    got = sample(forward, [[5, MASK, 6]], LONG, contract())
    other = sample(forward, [[5, 9, 6]], LONG, contract())
    assert len(got.token_ids) == 12 and got.history != other.history
    filled = sample(forward, [[5, MASK, None]], LONG, contract())
    assert filled.token_ids[:2] == [5, MASK]


def test_remasked_tokens_come_back_and_every_window_ends():
    params = {"max_new_tokens": 16, "threshold": 0.004, "temperature": 1.0, "ignore_eos": True}
    plain = sample(forward, [[5]], SamplingParams(**params), contract(block_size=8))
    doubtful = SamplingParams(**params, remask_threshold=0.02)
    got = sample(forward, [[5]], doubtful, contract(block_size=8))
    came_back = [
        i
        for before, after in itertools.pairwise(got.history)
        for i in range(16)
        if before[i] != MASK and after[i] == MASK
    ]
    assert came_back and max(map(came_back.count, came_back)) <= 3
    assert got.num_forwards > plain.num_forwards and MASK not in got.token_ids


@pytest.mark.parametrize("clean", ["block", "causal"])
def test_engine_equals_sampler_whatever_clean_tokens_see(clean):
    terms = contract(clean_attention=clean)
    params = SamplingParams(max_new_tokens=14, threshold=0.01, ignore_eos=True)
    engine = Engine(MODEL, terms, eos_ids={EOS}, max_length=512)
    engine.add_request(Request(request_id="a", prompt=[[5, 6, 8, 9, 10, 11]], params=params))
    answer = [token for _ in range(99) for output in engine.step() for token in output.token_ids]
    assert answer == sample(forward, [[5, 6, 8, 9, 10, 11]], params, terms).token_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids=.* holds token id 320"),
        ({"logit_bias": {-1: 3.0}}, "logit_bias=.* holds token id -1"),
        ({"suppress_tokens": [999]}, "suppress_tokens=.* holds token id 999"),
        ({"cfg_keep_tokens": [400]}, "cfg_keep_tokens=.* holds token id 400"),
    ],
)
def test_engine_refuses_ids_that_there_are_not(options, message):
    engine = Engine(MODEL, contract(), eos_ids={EOS}, max_length=512)
    with pytest.raises(ValueError, match=message):
        engine.add_request(Request(request_id="a", prompt=[[5]], params=SamplingParams(**options)))
