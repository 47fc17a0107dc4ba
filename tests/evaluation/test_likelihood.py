"""Laws of the likelihood estimator: enumeration, chain rule, log V, fixed draws."""

import copy
import itertools
import math

import pytest
import torch

from a2d_ray.evaluation.backends.likelihood import Likelihood
from a2d_ray.evaluation.backends.requests import ScoreRequest
from a2d_ray.evaluation.backends.score_batches import draws_per_forward, plan_batches
from a2d_ray.models.contract import Contract
from tests.closeness import ROUNDING, assert_close
from tests.devices import CPU_AND_GPU
from tests.tiny import tiny_a2d_model

MASK, EOS = 300, 2
CONTEXT = ((5, 6, 7, 8, 9), (11, 12, 13))
CONTINUATION = (21, 22, 23, 24, 25, 26)
LEFT_PAD = {"absolute": 0, "prompt_end": -8 % 4}


def contract(objective="bd3lm", grid="segment", block_size=4, **more):
    terms = {"mask_token_id": MASK, "block_size": block_size, "block_grid": grid, **more}
    return Contract(objective=objective, **terms)


def likelihood(terms, model=None):
    return Likelihood(model or tiny_a2d_model(), terms, eos_id=EOS, max_length=512)


def request(**options):
    return ScoreRequest(**{"context": CONTEXT, "continuation": CONTINUATION} | options)


def log_probs(model, ids, blocks):
    """[T, V] under the staircase mask, without the mask token."""
    block_T = torch.tensor(blocks)
    allowed = (block_T[None, :] <= block_T[:, None])[None, None]
    logits = model(input_ids=torch.tensor([ids]), attention_mask=allowed).logits[0].double()
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)


def blocks_of(terms, context, continuation):
    """Block index of every token, from the definitions of the grids."""
    size, ids = terms.block_size, [*itertools.chain(*context), *continuation]
    if terms.objective == "mdlm":
        return [0] * len(ids)
    if terms.block_grid == "segment":
        blocks = []
        for segment in (*context, continuation):
            first = blocks[-1] + 1 if blocks else 0
            blocks += [first + i // size for i in range(len(segment))]
        return blocks
    return [(i + LEFT_PAD[terms.block_grid]) // size for i in range(len(ids))]


@torch.inference_mode()
def enumerated(model, terms, context, continuation):
    """The NELBO: every count with probability 1/m, every set of that count equally likely."""
    ids, blocks = (
        [*itertools.chain(*context), *continuation],
        blocks_of(terms, context, continuation),
    )
    targets = range(len(ids) - len(continuation), len(ids))
    nats = 0.0
    for block in sorted({blocks[i] for i in targets}):
        places = [i for i in targets if blocks[i] == block]
        end = max(i for i, b in enumerate(blocks) if b == block) + 1
        m = len(places)
        for k in range(1, m + 1):
            for masked in itertools.combinations(places, k):
                xt = [MASK if i in masked else token for i, token in enumerate(ids[:end])]
                logp = log_probs(model, xt, blocks[:end])
                loss = -sum(float(logp[i, ids[i]]) for i in masked)
                nats += loss * (m / k) / (m * math.comb(m, k))
    return nats


@pytest.mark.parametrize(
    ("objective", "grid"),
    [("mdlm", "segment"), ("bd3lm", "segment"), ("bd3lm", "absolute"), ("bd3lm", "prompt_end")],
)
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_the_mean_over_draws_is_the_enumerated_nelbo(objective, grid, device):
    model, terms = tiny_a2d_model("qwen3"), contract(objective, grid)
    if device == "cuda":  # FlexAttention asks for wider heads
        model = tiny_a2d_model("llama", hidden_size=64)
    there = copy.deepcopy(model).to(device)
    (score,) = likelihood(terms, there).score([request(num_draws=600)])
    exact = enumerated(model, terms, CONTEXT, CONTINUATION)
    assert 0 < score.stderr < 0.02 * exact
    assert abs(score.nats - exact) < 3 * score.stderr
    assert score.num_tokens == 6


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_few_draws_are_honest_about_their_error(objective):
    """Standardised errors of independent estimates have variance 1."""
    model, terms = tiny_a2d_model(), contract(objective)
    pairs = [request(continuation=tuple(range(21 + i, 26 + i)), num_draws=8) for i in range(16)]
    errors = []
    for pair, score in zip(pairs, likelihood(terms, model).score(pairs), strict=True):
        exact = enumerated(model, terms, pair.context, pair.continuation)
        errors.append((score.nats - exact) / score.stderr)
    assert abs(sum(errors) / len(errors)) < 0.8
    assert 0.4 < math.sqrt(sum(e * e for e in errors) / len(errors)) < 2


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
def test_block_size_one_is_the_chain_rule_one_token_at_a_time(clean_attention):
    model = tiny_a2d_model("llama", seed=3)
    terms = contract(block_size=1, clean_attention=clean_attention)
    (score,) = likelihood(terms, model).score([request(num_draws=5)])
    nats, known = 0.0, list(itertools.chain(*CONTEXT))
    for token in CONTINUATION:
        with torch.inference_mode():
            logp = log_probs(model, [*known, MASK], range(len(known) + 1))
        nats -= float(logp[-1, token])
        known.append(token)
    assert score.stderr == 0
    assert_close(score.nats, nats)


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_a_uniform_model_scores_log_v(objective):
    model = tiny_a2d_model(tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    scores = likelihood(contract(objective), model).score(
        [request(), request(context=()), request(context=((),), continuation=(9,))]
    )
    for score in scores:
        assert_close(score.nats, score.num_tokens * math.log(319))
    assert scores[0].stderr < ROUNDING * scores[0].nats


def test_a_whole_answer_pays_for_stopping():
    """BD3LM: the fill of the last block is in the nats, not in the tokens."""
    model = tiny_a2d_model(tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    (score,) = likelihood(contract("bd3lm"), model).score([request(is_complete=True)])
    assert_close(score.nats, 8 * math.log(319))
    assert score.num_tokens == 6


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_two_evaluations_are_bit_identical_and_neighbours_do_not_matter(objective):
    scorer = likelihood(contract(objective))
    pairs = [request(continuation=tuple(range(20, 20 + n)), num_draws=6) for n in range(1, 9)]
    first = scorer.score(pairs)
    assert first == scorer.score(pairs)
    alone = [scorer.score([pair])[0] for pair in pairs]
    for a, b in zip(first, alone, strict=True):
        assert_close(a.nats, b.nats)
    few = scorer.score([request(num_draws=200)])[0]  # several forwards
    assert few == scorer.score([request(num_draws=200)])[0]


def test_a_shared_context_changes_nothing_about_other_draws():
    """BD3LM's draws of one forward see the clean copy and not each other."""
    scorer = likelihood(contract())
    together = scorer.score([request(num_draws=4)])[0].nats
    separate = [
        scorer._nats(_row(scorer, request()), range(draw, draw + 1)).item() for draw in range(4)
    ]
    assert_close(together, sum(separate) / 4)


def _row(scorer, pair):
    from a2d_ray.evaluation.backends.likelihood import _packed_row

    return _packed_row([pair])


class Counting(Likelihood):
    """Remembers the tokens of each forward, all rows and streams."""

    def _nats(self, row, draws):
        self.forwards = getattr(self, "forwards", [])
        one = self._mdlm_pass if self._spec.objective == "mdlm" else self._bd3lm_pass
        layout = one(row, draws).layout
        self.forwards.append(int((layout.doc_RT >= 0).sum()))
        return super()._nats(row, draws)


TERMS = [
    ("mdlm", "segment"),
    ("bd3lm", "segment"),
    ("bd3lm", "absolute"),
    ("bd3lm", "prompt_end"),
]


@pytest.mark.parametrize(("objective", "grid"), TERMS)
def test_batches_hold_every_request_once_and_fill_a_forward_to_its_limit(objective, grid):
    terms = contract(objective, grid)
    pairs = [
        request(
            context=((7,) * (3 * i % 40), (8,) * (5 * i % 11)),
            continuation=(9,) * (1 + 7 * i % 50),
            is_complete=i % 3 == 0,
            num_draws=2,
        )
        for i in range(60)
    ]
    batches = list(plan_batches(pairs, terms, max_tokens=600))
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    scorer = Counting(tiny_a2d_model(), terms, eos_id=EOS, max_length=512)
    for batch in batches:
        scorer.score([pairs[i] for i in batch])
    assert len(scorer.forwards) == len(batches) > 5
    assert 500 < max(scorer.forwards) <= 600
    assert list(plan_batches([], terms)) == []


def test_the_context_is_run_once_for_all_draws():
    pairs = [request(context=((5,) * 600,), continuation=(9, 8 + i)) for i in range(3)]
    assert list(plan_batches(pairs, contract())) == [[0, 1, 2]]
    scorer = Counting(tiny_a2d_model(), contract(), eos_id=EOS, max_length=1024)
    scorer.score(pairs)
    assert scorer.forwards == [3 * (600 + 16 * 2 * 2)]
    assert draws_per_forward([request(context=((5,) * 4000,))], contract()) >= 300


def test_exact_answers_are_not_drawn_again_beside_others():
    pairs = [request(context=((5,) * 9,), continuation=(9,) * n) for n in (1, 2, 1)]
    assert list(plan_batches(pairs, contract())) == [[0, 2], [1]]
    scores = likelihood(contract()).score(pairs)
    assert [score.stderr for score in scores[::2]] == [0, 0] and scores[1].stderr > 0


@pytest.mark.parametrize(
    ("terms", "pair", "message"),
    [
        (contract(None), request(), "objective is unknown"),
        (contract(right_shift_logits=True), request(), "right_shift_logits"),
        (contract(), request(continuation=()), "holds no token"),
        (contract(), request(context=((7,) * 510,)), "516 tokens, the model has 512"),
    ],
)
def test_what_cannot_be_scored_is_refused(terms, pair, message):
    with pytest.raises(ValueError, match=message):
        likelihood(terms).score([pair])
