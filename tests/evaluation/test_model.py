"""The harness's models: answers of our engine, likelihoods of our estimator, kept results."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from a2d_ray import SamplingParams, load
from a2d_ray.data.chat import ChatRenderer, encode_pieces
from a2d_ray.evaluation.backends.likelihood import Likelihood
from a2d_ray.evaluation.backends.local import LocalBackend
from a2d_ray.evaluation.backends.requests import ScoreRequest
from a2d_ray.evaluation.backends.responses import Responder, ResponseCache
from a2d_ray.evaluation.harness.ar import TimedHFLM
from a2d_ray.evaluation.harness.model import A2DBd3lm, A2DMdlm
from a2d_ray.evaluation.harness.whole_answers import IS_WHOLE
from a2d_ray.evaluation.harness.windows import rolling_windows
from a2d_ray.generation.decoding.params import derive_seed
from tests.closeness import assert_close

ROOT = Path(__file__).parent.parent.parent
TASK = {"until": ["e"], "max_gen_toks": 24}
CHAT = [{"role": "user", "content": "What is 1 + 2?"}]


def ask(kind, *arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def make(checkpoints):
    def _make(objective="bd3lm", **options):
        model = {"mdlm": A2DMdlm, "bd3lm": A2DBd3lm}[objective]
        known = {"pretrained": str(checkpoints[objective]), "device": "cpu", "dtype": "float32"}
        return model(**known | options)

    return _make


@pytest.fixture(scope="module")
def lm(checkpoints):
    return load(checkpoints["bd3lm"], dtype="float32", device="cpu")


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_answers_are_the_engines_and_stop_at_until(make, checkpoints, objective):
    lm = load(checkpoints[objective], dtype="float32", device="cpu")
    contexts = ["one", "another prompt", "x y", "42"]
    sampling = {"steps": 12, "rule": "steps", "temperature": 3.0, "seed": 5}
    apart = [sampling | {"seed": derive_seed(5, context, 0)} for context in contexts]

    def generate(**options):
        asked = [SamplingParams(max_new_tokens=24, **own, **options) for own in apart]
        return [lm.generate([c], p)[0] for c, p in zip(contexts, asked, strict=True)]

    whole = generate()
    stop = whole[0].text[7]
    model = make(objective, **sampling)
    task = {"until": [stop], "max_gen_toks": 24}
    texts = model.generate_until(ask("generate_until", *[(c, task) for c in contexts]))
    stopped = generate(stop=[stop])
    assert texts == [answer.text for answer in stopped]
    assert texts == [answer.text.split(stop)[0] for answer in whole]
    num_forwards = sum(answer.num_forwards for answer in stopped)
    assert model.responder.speed.num_forwards == num_forwards
    assert num_forwards <= sum(answer.num_forwards for answer in whole)
    assert stopped[0].num_forwards < whole[0].num_forwards or objective == "mdlm"


def test_a_chat_keeps_its_segments(make, lm):
    model = make()
    context = model.apply_chat_template(CHAT)
    few = [*CHAT, {"role": "assistant", "content": "3"}, {"role": "user", "content": "2 + 2?"}]
    many = model.apply_chat_template(few)
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    prefix = model.apply_chat_template(begun, add_generation_prompt=False)
    assert prefix == context + "It is"
    assert model.generate_until(
        ask("generate_until", (context, TASK), (many, TASK), (prefix, TASK))
    ) == [
        lm.generate([prompt], SamplingParams(max_new_tokens=24, stop=["e"]))[0].text
        for prompt in (CHAT, few, (*lm.encode(CHAT), lm.encode("It is")[0]))
    ]
    request = model.score_request(many, "four")
    assert request.context == lm.encode(few)
    assert request.continuation == tuple(lm.tokenizer("four").input_ids)


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_likelihoods_are_the_estimators(make, checkpoints, objective):
    lm = load(checkpoints[objective], dtype="float32", device="cpu")
    model = make(objective, mc_num=6)
    pairs = [("one", " two"), ("", "alone"), ("three", "4")]
    found = model.loglikelihood(ask("loglikelihood", *pairs))
    scorer = Likelihood(lm.model, lm.contract, eos_id=2, max_length=512)
    requests = [
        ScoreRequest(
            context=lm.encode(context),
            continuation=tuple(lm.tokenizer(tail).input_ids),
            num_draws=3,
        )
        for context, tail in pairs
    ]
    for (value, is_greedy), request in zip(found, requests, strict=True):
        assert_close(value, -scorer.score([request])[0].nats)
        assert is_greedy is False
    assert found == model.loglikelihood(ask("loglikelihood", *pairs))
    (rolling,) = model.loglikelihood_rolling(ask("loglikelihood_rolling", ("alone",)))
    assert_close(rolling, found[1][0])


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_a_whole_answer_is_scored_as_it_is_trained_with_its_end(
    make, checkpoints, objective, is_chat
):
    lm = load(checkpoints[objective], dtype="float32", device="cpu")
    model = make(objective, mc_num=4)
    trained = [*CHAT, {"role": "assistant", "content": "It is four"}]
    *context, answer = encode_pieces(ChatRenderer(lm.tokenizer).render(trained), lm.tokenizer)
    text = model.apply_chat_template(CHAT) if is_chat else "1 + 2?"
    request = ScoreRequest(
        context=tuple(map(tuple, context)) if is_chat else lm.encode(text),
        continuation=tuple(answer),
        is_complete=True,
        num_draws=2,
    )
    assert request.continuation[-1] == lm.tokenizer.eos_token_id
    asked = Instance("loglikelihood", {IS_WHOLE: True}, (text, "It is four"), 0)
    ((found, _),) = model.loglikelihood([asked])
    scorer = Likelihood(lm.model, lm.contract, eos_id=2, max_length=512)
    (score,) = scorer.score([request])
    assert_close([found, found.stderr], [-score.nats, score.stderr])
    ((without, _),) = model.loglikelihood(ask("loglikelihood", (text, "It is four")))
    assert found < without
    cut = make(objective, max_length=10).score_request(text, "four", is_complete=True)
    assert cut.is_complete and cut.num_tokens == 10


def test_an_ar_model_pays_for_stopping_too(checkpoints):
    model = TimedHFLM(
        pretrained=str(checkpoints["bd3lm"].parent / "ar"), device="cpu", dtype="float32"
    )
    eos = model.tokenizer.eos_token
    whole = Instance("loglikelihood", {IS_WHOLE: True}, ("one", " two"), 0)
    plain, spelt = ask("loglikelihood", ("one", " two"), ("one", " two" + eos))
    found = [value for value, _ in model.loglikelihood([whole, plain, spelt])]
    assert_close(found[0], found[2])
    assert found[0] < found[1]


def test_windows_of_a_text_add_up_their_errors(make):
    model = make(mc_num=8, max_length=16)
    (found,) = model.loglikelihood_rolling(ask("loglikelihood_rolling", ("a long text " * 4,)))
    ids = tuple(model.described.tokenizer("a long text " * 4).input_ids)
    windows = [dataclasses.replace(one, num_draws=4) for one in rolling_windows(ids, 16)]
    scores = model.responder.score(windows)
    assert len(scores) > 3 and found == -sum(score.nats for score in scores)
    assert found.stderr == pytest.approx(sum(score.stderr**2 for score in scores) ** 0.5)
    assert pickle.loads(pickle.dumps(found)).stderr == found.stderr


def test_greedy_is_checked_when_asked_for(make, lm):
    model = make(is_check_greedy=True, mc_num=2)
    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    (answer,) = lm.generate(["abc"], params)
    right = lm.tokenizer.decode(answer.token_ids)
    if len(lm.tokenizer(right).input_ids) == 3:
        found = model.loglikelihood(ask("loglikelihood", ("abc", right), ("abc", "zzz")))
        assert [flag for _, flag in found] == [True, False]


def test_context_and_continuation_split_at_the_common_prefix(make):
    """A token that spans the border belongs to the continuation."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*letters, "bc"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    model = make()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    model.described = dataclasses.replace(model.described, tokenizer=tokenizer)
    a, bc, d = vocab["a"], vocab["bc"], vocab["d"]
    request = model.score_request("ab", "cd")
    assert (request.context, request.continuation) == (((a,),), (bc, d))
    request = model.score_request("a", "d")
    assert (request.context, request.continuation) == (((a,),), (d,))
    assert model.score_request("", "a").context == ()
    assert model.score_request("b", "c").continuation == (bc,)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 14, 15, 16, 37])
def test_windows_predict_each_token_once(length):
    ids = tuple(range(length))
    windows = list(rolling_windows(ids, 10))
    assert tuple(i for w in windows for i in w.continuation) == ids
    assert all(w.num_tokens <= 10 for w in windows)
    for window in windows[1:]:
        assert window.context[0][-1] == window.continuation[0] - 1
        assert len(window.context[0]) == 5


def test_long_contexts_are_cut_on_the_left(make):
    model = make(max_length=20)
    request = model.score_request("abcdefghijklmnopqrstuvwxyz", "12345")
    assert request.num_tokens == 20 and len(request.continuation) == 5
    text = "".join(model.described.tokenizer.decode(request.context[0]))
    assert text == "lmnopqrstuvwxyz"
    with pytest.raises(ValueError, match="does not fit max_length"):
        model.score_request("a", "b" * 21)


class Counting(LocalBackend):
    """Counts what it is asked, and dies after so many results."""

    def __init__(self, lm, dies_after=10**9):
        super().__init__(lm, batch_size=2)
        self.left, self.asked = dies_after, 0

    def _watch(self, results):
        for result in results:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked += 1
            yield result

    def generate(self, requests):
        return self._watch(super().generate(requests))

    def score(self, batches):
        return self._watch(super().score(batches))


def test_a_killed_evaluation_goes_on_and_gives_the_same(make, lm, tmp_path):
    model = make(mc_num=64)
    generation = [(f"prompt {i}", TASK) for i in range(7)]
    pairs = [(f"context {i}", "tail" * i) for i in range(1, 9)]

    def run(backend, cache):
        model.responder = Responder(
            backend, cache, contract=model.described.contract, is_quiet=True
        )
        texts = model.generate_until(ask("generate_until", *generation))
        return texts, model.loglikelihood(ask("loglikelihood", *pairs))

    def cache():
        return ResponseCache(tmp_path / "c.sqlite", model.described.fingerprint)

    whole = run(LocalBackend(lm, batch_size=2), None)
    for dies_after in (3, 5):  # among the answers, then among the likelihoods
        with pytest.raises(KeyboardInterrupt):
            run(Counting(lm, dies_after), cache())
    last = Counting(lm)
    assert run(last, cache()) == whole
    assert 0 < last.asked < 7
    silent = Counting(lm, 0)
    assert run(silent, cache()) == whole and silent.asked == 0
    other = ResponseCache(tmp_path / "c.sqlite", {"weights": "others"})
    again = Counting(lm)
    assert run(again, other) == whole and again.asked >= 7


def test_repeats_differ_when_they_are_sampled(make):
    model = make(temperature=1.5)
    options = {"until": [], "max_gen_toks": 12, "do_sample": True}
    first, second = model.generate_until(ask("generate_until", ("x", options), ("x", options)))
    assert first != second
    assert [first, second] == model.generate_until(
        ask("generate_until", ("x", options), ("x", options))
    )


class Recording(LocalBackend):
    """Notes what it is asked."""

    def generate(self, requests):
        self.requests = requests
        return super().generate(requests)


def seeds(lm, contexts, **options):
    backend = Recording(lm)
    model = A2DBd3lm(backend=backend, pretrained="above", max_new_tokens=2, **options)
    model.generate_until(ask("generate_until", *[(context, {}) for context in contexts]))
    return [request.params.seed for request in backend.requests]


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"rule": "steps", "remasking": "random"}]
)
def test_no_two_documents_repeats_or_seeds_draw_alike(lm, options):
    contexts = [f"prompt {i % 5}" for i in range(15)]
    found = [s for seed in range(4) for s in seeds(lm, contexts, seed=seed, **options)]
    assert len(set(found)) == 60
    assert seeds(lm, contexts, seed=3, **options) == found[45:]
    assert set(seeds(lm, contexts, seed=3)) == {3}  # nothing is drawn


def test_a_tasks_options_reach_the_decoder_or_are_refused_by_name(make):
    model = make(temperature=0.5, seed=1)
    task = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": -1, "max_tokens": 9}
    task |= {"until": "a", "stop": ["b", ""], "min_new_tokens": 2, "num_beams": 1}
    found = model.params(task | {"repetition_penalty": 1.2, "steps": 4})
    assert found == SamplingParams(
        max_new_tokens=9,
        min_tokens=2,
        temperature=0.5,
        seed=1,
        top_p=0.95,
        repetition_penalty=1.2,
        stop=["a", "b"],
        rule="steps",
        steps=4,
    )
    greedy = make().params({"do_sample": False, "temperature": 0.8, "top_p": 0.9, "until": []})
    assert greedy == SamplingParams(max_new_tokens=256)
    assert make().params({"max_gen_toks": 5, "max_new_tokens": 7}).max_new_tokens == 5
    for option in ({"num_beams": 4}, {"typical_p": 0.5}, {"max_length": 9}, {"top_p": 2}):
        (name,) = option
        with pytest.raises(ValueError, match=name):
            model.params(option | {"do_sample": True})


@pytest.mark.parametrize(
    ("written", "passed", "batch_size"),
    [
        ("", 1, 32),
        ("", "1", 32),
        ("", "auto:4", 32),
        ("", 5, 5),
        (",batch_size=8", 1, 8),
        (",batch_size=1", 1, 1),
        (",batch_size=auto", 1, 32),
    ],
)
def test_the_harness_asks_for_no_batch_of_one(checkpoints, written, passed, batch_size):
    """It passes a batch size of 1 where nobody names one."""
    text = f"pretrained={checkpoints['bd3lm']},device=cpu{written}"
    harness = {"batch_size": passed, "max_batch_size": None, "device": "cuda:0"}
    model = A2DBd3lm.create_from_arg_string(text, harness)
    assert model.options.others["batch_size"] == batch_size
    assert model.options.model["device"] == "cpu"


def test_likelihoods_are_those_of_the_block_size_that_is_asked_for(make, lm):
    scorer = Likelihood(
        lm.model, lm.contract.model_copy(update={"block_size": 2}), eos_id=2, max_length=512
    )
    request = ScoreRequest(
        context=lm.encode("one"), continuation=lm.encode(" two three")[0], num_draws=3
    )
    pair = ask("loglikelihood", ("one", " two three"))
    ((found, _),) = make(mc_num=6, block_size=2).loglikelihood(pair)
    assert_close(found, -scorer.score([request])[0].nats)
    assert found != make(mc_num=6).loglikelihood(pair)[0][0]
    (rolling,) = make(mc_num=6, block_size=2).loglikelihood_rolling(ask("rolling", ("abcdef",)))
    assert rolling != make(mc_num=6).loglikelihood_rolling(ask("rolling", ("abcdef",)))[0]
    whole = [make("mdlm", mc_num=6, **o).loglikelihood(pair) for o in ({}, {"block_size": 2})]
    assert whole[0] == whole[1]  # MDLM's windows are of sampling alone


def test_a_block_size_that_was_not_trained_has_no_likelihood(lm):
    contract = lm.contract.model_copy(update={"block_sizes": (4,)})
    backend = LocalBackend(dataclasses.replace(lm, contract=contract))
    request = ScoreRequest(context=(), continuation=(5, 6), block_size=2)
    with pytest.raises(ValueError, match=r"block_size=2 was not trained"):
        list(backend.score([[request]]))


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (
            "bd3lm",
            {"max_new_token": 3},
            "max_new_token=3 is no model argument: did you",
        ),
        ("bd3lm", {"cfg": 1.5}, "cfg=1.5 is not supported"),
        ("bd3lm", {"right_shift_logits": True}, "right_shift_logits=true is not supported"),
        ("bd3lm", {"temperature": -1}, "temperature"),
        ("bd3lm", {"rule": "steps", "factor": 2.0}, "factor=2.0 has no effect with rule=steps"),
        ("bd3lm", {"pretrained": ""}, "pretrained=CHECKPOINT"),
        ("mdlm", {"pretrained": "bd3lm"}, "use --model a2d_bd3lm"),
    ],
)
def test_bad_model_args_are_refused(make, checkpoints, objective, options, message):
    if options.get("pretrained") in checkpoints:
        options = {"pretrained": str(checkpoints[options["pretrained"]])}
    with pytest.raises(ValueError, match=message):
        make(objective, **options)
    make("bd3lm", cfg=0.0, cfg_scale=0.0, right_shift_logits=False, max_batch_size=None)


@pytest.mark.slow
def test_the_harness_runs_our_models_from_its_own_command_line(checkpoints, tmp_path):
    rows = [{"q": f"{i} + {i} =", "a": str(2 * i)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "doubles.yaml").write_text(
        f"task: doubles\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['\\n']}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "a2d_ray.evaluation", "run", "--model", "a2d_mdlm"),
            *("--tasks", "doubles", "--include_path", str(tmp_path), "--apply_chat_template"),
            *("--output_path", str(tmp_path / "out"), "--log_samples", "--model_args"),
            f"pretrained={checkpoints['mdlm']},max_new_tokens=8,steps=8,block_size=8,cfg_scale=0.0,batch_size=2",
            *("--gen_kwargs", "repetition_penalty=1.2"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(report.read_text())
    assert results["results"]["doubles"]["exact_match,none"] == 0.0
    assert results["n-samples"]["doubles"]["effective"] == 4
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert "user" in samples.read_text() and len(samples.read_text().splitlines()) == 4
