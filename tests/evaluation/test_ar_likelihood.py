"""Exact likelihoods in the AR mode are the causal model's, however they are asked and batched."""

import dataclasses
import itertools

import pytest
import torch
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from a2d_ray import convert, load
from a2d_ray.config import EvaluateConfig
from a2d_ray.config.errors import OptionError
from a2d_ray.evaluation.backends.ar_likelihood import ARLikelihood
from a2d_ray.evaluation.backends.endpoint import EndpointBackend
from a2d_ray.evaluation.backends.local import LocalBackend
from a2d_ray.evaluation.backends.requests import ScoreRequest
from a2d_ray.evaluation.backends.responses import Responder
from a2d_ray.evaluation.backends.score_batches import plan_batches, shared_rows
from a2d_ray.evaluation.harness.model import A2DHarnessModel
from a2d_ray.evaluation.harness.suite import run_suite
from a2d_ray.evaluation.harness.windows import ar_windows
from a2d_ray.evaluation.report.report import differing_conditions, markdown
from a2d_ray.models.architectures import ARCHITECTURES
from a2d_ray.models.checkpoint import save_checkpoint
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.generation.test_engine_laws import LAW
from tests.models.test_gated_lora import with_adapters
from tests.tiny import save_tiny_ar, tiny_a2d_model, tiny_ar_model

NAMES = [row.ar_model_type for row in ARCHITECTURES]
MASK = 300
MODEL, AR_MODEL = tiny_a2d_model("llama"), tiny_ar_model("llama")
PAIRS = [("one", " two"), ("", "alone"), ("one", " three four"), ("one", " "), ("a " * 40, "b c d")]
TEXTS = ["", "a", "short", "a text that needs several windows to be read " * 3]
CHAT_NELBO = {"task": "a2d_chat_nelbo", "metric": "nelbo_bits_per_byte,none", "limit": 4}


def score(requests, model=MODEL):
    return ARLikelihood(model, mask_id=MASK, max_length=512).score(requests)


def request(context, continuation):
    return ScoreRequest(context=context, continuation=tuple(continuation), likelihood="ar")


@torch.inference_mode()
def expected(one, model=AR_MODEL):
    """Nats, and whether greedy decoding gives it, by transformers."""
    ids = [*one.context_ids, *one.continuation]
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    logits[:, MASK] = -torch.inf
    logp = logits.log_softmax(-1)[-len(one.continuation) :]
    label = torch.tensor(one.continuation)
    is_greedy = bool((logp.argmax(-1) == label).all())
    return -float(logp.gather(-1, label[:, None]).sum()), is_greedy


def greedy_tokens(context, count):
    ids = list(context)
    for _ in range(count):
        logits = AR_MODEL(torch.tensor([ids])).logits[0, -1]
        logits[MASK] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(context) :]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_scores_what_the_causal_model_scores(name):
    """Shared and own contexts, one token and many, borders of segments wherever they are."""
    context = ((5, 6, 7, 8), (9, 10, 11))
    requests = [
        *(request(context, range(20, 20 + n)) for n in (1, 2, 7, 8)),
        request(((5, 6, 7, 8, 9, 10, 11),), (21, 30)),
        request(((3,),), range(40, 70)),
        request(((4,) * 50,), (9,)),
    ]
    ar_model = tiny_ar_model(name)
    for found, one in zip(score(requests, tiny_a2d_model(name)), requests, strict=True):
        nats, is_greedy = expected(one, ar_model)
        assert found.nats == pytest.approx(nats, abs=1e-4)
        assert (found.stderr, found.is_greedy) == (0, is_greedy)
        assert found.num_tokens == len(one.continuation)


@LAW
@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from([(3,), (5, 6, 7), (5, 6, 7, 8, 9, 10), (9,) * 40]),
            st.lists(st.integers(3, 299), min_size=1, max_size=30),
        ),
        min_size=1,
        max_size=12,
    ),
    max_tokens=st.integers(1, 200),
)
def test_batches_hold_every_request_once_within_their_limit(pairs, max_tokens):
    requests = [request((context,), tail) for context, tail in pairs]
    batches = list(plan_batches(requests, None, max_tokens=max_tokens))
    assert sorted(itertools.chain(*batches)) == list(range(len(requests)))
    scores = {}
    for batch in batches:
        asked = [requests[i] for i in batch]
        rows = shared_rows(asked)
        assert len(rows) * max(row.num_tokens for row in rows) <= max_tokens or len(rows) == 1
        scores |= zip(batch, score(asked), strict=True)
    for index, one in enumerate(requests):
        assert scores[index].nats == pytest.approx(expected(one)[0], abs=1e-4)


def test_a_context_is_run_once_for_its_choices():
    context = (tuple(range(5, 105)),)
    asked = [request(context, range(9, 9 + n)) for n in (4, 10, 1, 2)]
    (row,) = shared_rows(asked)
    assert row.num_tokens == 100 + 3 + 9 + 0 + 1
    assert len(shared_rows([request(((3,),), (7, 8)), request(((3,),), (7, 9, 4))])) == 2


def test_greedy_is_what_the_ar_mode_writes():
    context = tuple(range(5, 20))
    written = greedy_tokens(context, 6)
    other = [*written[:-1], (written[-1] + 1) % MASK]
    found = score([request((context,), tail) for tail in (written, other, written[:3])])
    assert [one.is_greedy for one in found] == [True, False, True]


def test_gated_adapters_change_nothing():
    model = with_adapters()[1]
    asked = [request(((5, 6, 7),), (8, 9, 10)), request(((5, 6, 7),), (11,))]
    assert score(asked, model) == score(asked)


def test_what_cannot_be_scored_is_refused():
    for one, message in (
        (request(((5,),), ()), "holds no token"),
        (request((), (5,)), "begin with the BOS token"),
        (request(((5,) * 512,), (6, 7)), "514 tokens, the model predicts 512"),
    ):
        with pytest.raises(ValueError, match=message):
            score([one])
    (longest,) = score([request(((5,) * 511,), (6, 7))])
    assert longest.nats > 0


# As the harness asks.


@pytest.fixture(scope="module", params=NAMES)
def original(request, tmp_path_factory):
    """An AR checkpoint, and what it was converted to."""
    root = tmp_path_factory.mktemp(request.param)
    ar = save_tiny_ar(root / "ar", request.param)
    lm = load(convert(str(ar), root / "converted"), dtype="float32", device="cpu")
    terms = lm.contract.model_copy(update={"ar_mode": "original"})
    save_checkpoint(root / "a2d", model=lm.model, tokenizer=lm.tokenizer, contract=terms)
    return root


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return checkpoints["causal"]


def make(path, **options):
    return A2DHarnessModel(
        **{"pretrained": str(path), "device": "cpu", "dtype": "float32"} | options
    )


def ask(kind, *arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


class WithoutMask(HFLM):
    """The AR original without the row that conversion takes for the mask token."""

    def _model_call(self, inps, **options):
        logits = super()._model_call(inps, **options)
        logits[..., 259] = -torch.inf
        return logits


@pytest.mark.parametrize("max_length", [512, 16])
def test_the_harness_gets_what_its_own_model_gives(original, max_length):
    """Empty contexts, contexts cut on the left, texts in windows."""
    theirs = WithoutMask(
        pretrained=str(original / "ar"), device="cpu", dtype="float32", max_length=max_length
    )
    ours = make(original / "a2d", max_length=max_length)
    assert (ours.likelihood, ours.described.contract.mask_token_id) == ("ar", 259)
    pairs = ask("loglikelihood", *PAIRS)
    wanted = theirs.loglikelihood(pairs, disable_tqdm=True)
    for (found, is_greedy), (nats, was_greedy) in zip(
        ours.loglikelihood(pairs), wanted, strict=True
    ):
        assert found == pytest.approx(nats, abs=1e-4) and found.stderr == 0
        assert is_greedy == was_greedy
    texts = ask("loglikelihood_rolling", *[(text,) for text in TEXTS])
    wanted = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 37])
def test_windows_predict_each_token_once(length):
    ids = tuple(range(100, 100 + length))
    windows = list(ar_windows(ids, 10, 7))
    assert tuple(i for w in windows for i in w.continuation) == ids
    assert all(w.num_tokens <= 11 for w in windows) and windows[0].context == ((7,),)
    assert all(w.context_ids[-1] == w.continuation[0] - 1 for w in windows[1:])


def test_the_likelihood_can_be_chosen_and_the_report_says_which(checkpoint, checkpoints, tmp_path):
    def run(path, **options):
        values = {"name": "x", "model": {"path": str(path), "dtype": "float32", "device": "cpu"}}
        values |= {"tasks": [CHAT_NELBO], "output": str(tmp_path), "mc_num": 2}
        values = {k: v for k, v in (values | options).items() if v is not None}
        return run_suite(EvaluateConfig.model_validate(values))

    exact, bound = run(checkpoint), run(checkpoint, likelihood="nelbo")
    assert exact["tasks"] != bound["tasks"]
    for report, kind in ((exact, "ar"), (bound, "nelbo"), (run(checkpoints["bd3lm"]), "nelbo")):
        assert report["tasks"]["a2d_chat_nelbo"]["likelihood"] == kind
        assert ("exact (AR)" in markdown(report)) == (kind == "ar")
    assert exact["tasks"]["a2d_chat_nelbo"]["monte_carlo_stderr"] == 0
    assert differing_conditions(exact, bound, exact["tasks"]) == [
        "a2d_chat_nelbo: likelihood ar and nelbo"
    ]
    with pytest.raises(OptionError, match=r"likelihood=ar needs an AR mode.*ar_loss_weight=1"):
        run(checkpoints["bd3lm"], likelihood="ar", mc_num=None)
    with pytest.raises(ValueError, match=r"mc_num=2 has no effect with likelihood=ar"):
        run(checkpoint, likelihood="ar")
    with pytest.raises(OptionError, match="likelihood=exact is no kind"):
        make(checkpoint, likelihood="exact")


# Over HTTP.


def served(lm, card, told="prompt_logprobs"):
    """The part of vLLM's API that likelihoods need; what is asked is kept in `asked`."""
    app = FastAPI()
    app.state.asked = []

    @app.get("/v1/models")
    def models():
        return {"object": "list", "data": [{"id": "m", "object": "model"} | card]}

    @app.post("/v1/completions")
    def complete(body: dict):
        app.state.asked.append(body)
        ids = body["prompt"]
        logits = lm.model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None],
        ).logits[0, :-1]
        logits[:, lm.contract.mask_token_id] = -torch.inf
        entries = [None]
        for token, row in zip(ids[1:], logits.log_softmax(-1).detach(), strict=True):
            chosen = {token, *row.topk(body["prompt_logprobs"]).indices.tolist()}
            entries.append({str(i): {"logprob": float(row[i]), "rank": 1} for i in chosen})
        choice = {"index": 0, "text": "x", "finish_reason": "length", told: entries}
        used = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        own = {"id": "c", "object": "text_completion", "created": 0, "model": "m"}
        return own | {"choices": [choice], "usage": used}

    return app


OURS = {"max_model_len": 40, "diffusion": {"lossless": "own", "fingerprint": "f"}}


def equal_to_one_process(checkpoint, url, longest):
    """Asks an endpoint and a model of so many positions."""
    pairs = ask("loglikelihood", *PAIRS)
    texts = ask("loglikelihood_rolling", *[(4 * text,) for text in TEXTS])
    there = make(checkpoint, base_url=f"{url}/v1")
    here = make(checkpoint, max_length=longest)
    for (found, is_greedy), (wanted, was_greedy) in zip(
        there.loglikelihood(pairs), here.loglikelihood(pairs), strict=True
    ):
        assert found == pytest.approx(wanted, abs=1e-4) and is_greedy == was_greedy
    wanted = here.loglikelihood_rolling(texts)
    assert there.loglikelihood_rolling(texts) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("card", [OURS, {"max_model_len": 40}], ids=["ours", "vllm"])
def test_an_endpoint_gives_the_likelihoods_of_one_process(checkpoint, card):
    app = served(load(checkpoint, dtype="float32", device="cpu"), card)
    with listening(app) as url:
        equal_to_one_process(checkpoint, url, longest=38)
    asked = app.state.asked
    assert max(len(body["prompt"]) for body in asked) == 39
    assert all(body["max_tokens"] == 1 for body in asked)
    rules = [body.get("diffusion") for body in asked]
    assert rules == [{"rule": "ar"} if "diffusion" in card else None] * len(rules)


def test_a_server_of_ours_gives_them_too(checkpoint):
    server = ModelServer(load(checkpoint, dtype="float32", device="cpu"))
    try:
        with listening(create_app({"tiny": server})) as url:
            equal_to_one_process(checkpoint, url, longest=510)
    finally:
        server.close()


def test_an_endpoint_that_cannot_says_what_to_do(checkpoint):
    lm = load(checkpoint, dtype="float32", device="cpu")
    no = OURS | {"diffusion": {"lossless": "no", "fingerprint": "f"}}
    for card, told, options, message in (
        (no, "prompt_logprobs", {}, "likelihood=auto is a NELBO here, which no endpoint gives"),
        (OURS, "prompt_logprobs", {"likelihood": "nelbo"}, "is a NELBO here"),
        (no, "prompt_logprobs", {"likelihood": "ar"}, "needs an AR mode"),
        (OURS, "prompt_logprobs", {"pretrained": None}, "name the served checkpoint"),
        (OURS | {"max_model_len": None}, "prompt_logprobs", {}, "max_length.* is needed"),
        (OURS, "nothing", {}, "gives no prompt_logprobs"),
    ):
        with listening(served(lm, card, told)) as url:
            model = make(checkpoint, base_url=f"{url}/v1", **options)
            with pytest.raises(ValueError, match=message):
                model.loglikelihood(ask("loglikelihood", ("one", " two")))


def test_batches_of_an_endpoint_are_those_of_the_plan(checkpoint):
    lm = load(checkpoint, dtype="float32", device="cpu")
    asked = [request((tuple(range(5, 9)),), range(9, 10 + n)) for n in range(9)]
    with listening(served(lm, OURS)) as url:
        there = Responder(EndpointBackend(f"{url}/v1"), is_quiet=True).score(asked)
    here = Responder(LocalBackend(lm), contract=lm.contract, is_quiet=True).score(asked)
    for found, wanted in zip(there, here, strict=True):
        assert found.nats == pytest.approx(wanted.nats, abs=1e-4)
        assert dataclasses.replace(found, nats=0) == dataclasses.replace(wanted, nats=0)
