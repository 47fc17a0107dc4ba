"""Batched decisions are those of a loop over requests, whatever is mixed in a batch."""

import random
from dataclasses import replace

import pytest
import torch

from a2d_ray.config import AR_RULES, RULES
from a2d_ray.generation.decoding.asking import by_rule, inquire, make_batch
from a2d_ray.generation.decoding.canvas import make_canvas
from a2d_ray.generation.decoding.decide import decide
from a2d_ray.generation.decoding.denoise import Active, Decoder, RuleState, denoise
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.decoding.reading import is_wide, num_words, read
from a2d_ray.generation.engine.transfer import send
from a2d_ray.models.contract import Contract
from tests.generation import scalar_rules
from tests.generation.test_speculation import OddFirst
from tests.standin.device import DEVICE

MASK, EOS, BLOCK, VOCAB = 300, 7, 6, 320
STOPS = (EOS, 9, 11)
CONTRACT = Contract(objective="bd3lm", mask_token_id=MASK, block_size=BLOCK, ar_mode="trained")
CHOICES = {
    "threshold": [0.02, 0.3, 0.9],
    "steps": [None, 2, 5],
    "remasking": ["low_confidence", "random", "leftmost"],
    "stochastic_transfer": [False, True],
    "factor": [0.5, 3.0],
    "delta": [0.0, 0.25],
    "gamma": [0.1, 6.0],
    "kl_threshold": [0.01, 3.0],
    "entropy_threshold": [0.4, 4.0],
    "entropy_slope": [0.0, 0.3],
}


def random_params(rng, rule):
    options = {name: rng.choice(CHOICES[name]) for name in RULES[rule] if name in CHOICES}
    options |= {"rule": rule, "max_new_tokens": BLOCK, "seed": rng.randrange(5)}
    if rng.random() < 0.5:
        options["temperature"] = rng.choice([0.4, 1.5])
        options["top_k"] = rng.choice([0, 0, 3, 400])
        options["top_p"] = rng.choice([1.0, 0.6, 0.99])
        options["min_p"] = rng.choice([0.0, 0.0, 0.05])
    if rng.random() < 0.4:
        options["repetition_penalty"] = rng.choice([1.0, 1.3])
        options["frequency_penalty"] = rng.choice([0.0, 0.5])
        options["presence_penalty"] = rng.choice([0.0, 0.7])
    if rng.random() < 0.4:
        options["logit_bias"] = {33: 2.0, 44: -3.0}
        options["suppress_tokens"] = [50, 51]
        options["min_tokens"] = 3
        if rule not in AR_RULES:
            options["begin_suppress_tokens"] = [60, 61]
    if rng.random() < 0.3:
        options["logprobs"] = rng.choice([0, 2, 5])
    if rng.random() < 0.3 and rule not in (*AR_RULES, "prefix"):
        options["remask_threshold"] = 0.02
    return SamplingParams(**options)


class Playing:
    """A request, decided once in the batch and once by the oracle."""

    def __init__(self, rng, number, rule):
        params = random_params(rng, rule)
        contract = CONTRACT.model_copy(update={"clean_attention": "causal"})
        self.canvas = make_canvas([[5, 6, 33, number % 200 + 12]], params, contract)
        grammar = rng.random() < 0.5 and rule in ("prefix", *AR_RULES)
        common = {"params": params, "canvas": self.canvas, "mask_id": MASK, "choice": number % 3}
        common["stop_ids"] = frozenset(STOPS)
        self.batched, self.alone = (
            Decoder(**common, grammar=OddFirst(BLOCK) if grammar else None) for _ in range(2)
        )
        self.state, self.oracle_state = RuleState(), scalar_rules.State()
        self.ids, self.is_masked = list(self.canvas.ids), list(self.canvas.is_open)
        self.drafts = [rng.randrange(300) for _ in range(rng.randrange(3))]
        self.rng = rng

    @property
    def is_ar(self):
        return self.batched.params.rule in AR_RULES

    def active(self):
        if not self.is_ar:
            window = (self.canvas.start, len(self.canvas))
            return self.batched.active(self.ids, self.is_masked, window)
        start = self.is_masked.index(True)
        drafts = self.drafts[: len(self.canvas) - start - 1]
        return Active.masked(range(start, start + len(drafts) + 1), [*drafts, MASK])

    def oracle(self, logits, active):
        """(ids, log-probabilities, committed, remasked, likely tokens) of the positions."""
        tensors = [torch.tensor(x) for x in (active.positions, active.ids, active.is_masked)]
        if not self.is_ar:
            one = scalar_rules.Active(*tensors)
            done, self.oracle_state = scalar_rules.denoise(
                logits, one, self.alone, self.oracle_state
            )
            is_committed = done.is_committed_N.tolist()
            columns = done.ids_N.tolist(), done.logprob_N.tolist(), is_committed
            return *columns, done.is_remasked_N.tolist(), done.top
        found = []
        for row in range(len(logits)):  # one after the other, as long as drafts are right
            one = scalar_rules.Active(*(x[row : row + 1] for x in tensors))
            done, self.oracle_state = scalar_rules.denoise(
                logits[row : row + 1], one, self.alone, self.oracle_state
            )
            token = int(done.ids_N)
            found.append((token, float(done.logprob_N), True, False, done.top[0]))
            if token in STOPS and self.alone.grammar is not None:
                break
            if token != active.ids[row]:
                break
        return tuple(map(list, zip(*found, strict=True)))

    def write(self, active, commitment):
        for index, place in enumerate(active.positions):
            if commitment.is_committed[index]:
                self.ids[place], self.is_masked[place] = commitment.ids[index], False
            if commitment.is_remasked[index]:
                self.ids[place], self.is_masked[place] = MASK, True
        self.state = commitment.state
        likely = list(commitment.ids)
        self.drafts = [self.rng.choice([i, 20]) for i in likely[: self.rng.randrange(3)]]

    @property
    def is_done(self):
        ended = self.batched.grammar is not None and EOS in self.ids
        return ended or not any(self.is_masked)


def play(seed, num_requests, decide_all, num_rounds=30):
    """Requests of all rules, decided together and alone, until all are done; steps compared."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rules = [rule for rule in RULES if rule != "auto"]
    playing = [Playing(rng, i, rules[i % len(rules)]) for i in range(num_requests)]
    base = 2.5 * torch.randn(num_requests, 32, VOCAB, generator=generator)
    num_steps = 0
    for round_index in range(num_rounds):
        alive = [i for i, one in enumerate(playing) if not one.is_done]
        if not alive:
            break
        asked, logits = [], []
        for i in alive:
            active = playing[i].active()
            rows = base[i, list(active.positions)]
            noise = torch.randn(rows.shape, generator=generator)
            logits.append(rows + 0.3 * round_index * noise)
            asked.append(inquire(playing[i].batched, active, playing[i].state))
        order = by_rule(asked)
        done = decide_all([asked[i] for i in order], torch.cat([logits[i] for i in order]))
        for i, commitment in zip(order, done, strict=True):
            assert not isinstance(commitment, Exception), commitment
            one, active = playing[alive[i]], asked[i].active
            ids, logprobs, committed, remasked, likely = one.oracle(logits[i].clone(), active)
            num = len(ids)
            assert commitment.ids[:num] == tuple(ids), one.batched.params
            assert commitment.is_committed == (*committed, *[False] * (len(active.ids) - num))
            assert commitment.is_remasked[:num] == tuple(remasked)
            found = commitment.logprobs[:num]
            assert [x.logprob for x in found] == pytest.approx(logprobs, abs=1e-5)
            assert [[i for i, _ in x.top] for x in found] == [[i for i, _ in x.top] for x in likely]
            one.write(active, commitment)
            num_steps += 1
    return num_steps


def on_the_cpu(asked, logits):
    batch = make_batch(asked)
    decision = decide(logits, batch, is_exact=True)
    assert len(decision.words) == num_words(batch, logits.shape[1])
    return read(decision.words.numpy(), asked, batch, decision.logp_MV)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_decided_as_its_requests_are_alone(seed):
    """All rules and options in one batch, with penalties, grammars, drafts and tokens that fall."""
    assert play(seed, 22, on_the_cpu) > 60


def wide_request(top_p=0.9999):
    options = {"max_new_tokens": BLOCK, "temperature": 5.0, "top_p": top_p, "ignore_eos": True}
    params = SamplingParams(rule="threshold", **options)
    decoder = Decoder(
        params=params,
        canvas=make_canvas([[5]], params, CONTRACT),
        mask_id=MASK,
        stop_ids=frozenset(),
    )
    active = decoder.active(decoder.canvas.ids, decoder.canvas.is_open, decoder.canvas.windows[0])
    return inquire(decoder, active, RuleState())


def test_a_large_nucleus_is_flagged_where_it_is_not_looked_for():
    logits = torch.randn(BLOCK, 2_000, generator=torch.Generator().manual_seed(0))
    for top_p, wide in ((0.9999, True), (0.02, False)):
        asked = wide_request(top_p)
        batch = make_batch([asked])
        quick = decide(logits.clone(), batch, is_exact=False)
        exact = decide(logits.clone(), batch, is_exact=True)
        assert is_wide(quick.words.numpy(), batch) == wide
        assert not is_wide(exact.words.numpy(), batch)
        expected = denoise(logits.clone(), asked.active, asked.decoder, asked.state)
        (found,) = read(exact.words.numpy(), [asked], batch, None)
        assert replace(found, state=expected.state) == expected
        if not wide:
            assert torch.equal(quick.words, exact.words)


# On an accelerator.


def on_the_device(device, found):
    def decide_all(asked, logits):
        on_host = make_batch(asked)
        batch = send(on_host, device)
        sent = logits.to(device)
        with DEVICE.counting() as counts:
            decision = decide(sent.clone(), batch, is_exact=False)
        found.append(counts)
        words = decision.words.cpu().numpy()
        if is_wide(words, on_host):
            decision = decide(sent, batch, is_exact=True)
            words = decision.words.cpu().numpy()
        return read(words, asked, on_host, decision.logp_MV)

    return decide_all


def test_a_device_decides_the_same_and_is_never_waited_for():
    found = []
    with DEVICE.present() as device:
        play(3, 20, on_the_device(device, found), num_rounds=3)
    assert found
    for counts in found:
        assert not counts.waits and not counts.to_host and not counts.to_device
