"""Answers over HTTP, from a real server: those of one process, whatever the server's defaults are
and whatever fails."""

import signal
import threading

import openai
import pytest
from lm_eval.api.instance import Instance

from a2d_ray import SamplingParams, load
from a2d_ray.config import LimitsSection, SamplingSection
from a2d_ray.evaluation.backends.endpoint import EndpointBackend
from a2d_ray.evaluation.backends.local import LocalBackend
from a2d_ray.evaluation.backends.requests import Answer, GenerateRequest
from a2d_ray.evaluation.backends.responses import Responder, ResponseCache
from a2d_ray.evaluation.harness.model import A2DHarnessModel
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.test_signals import PLACES

TEXTS = ["one", "another prompt", "x y", "42"]
CHAT = [{"role": "user", "content": "What is 1 + 2?"}]
SETTINGS = [
    {},
    {"rule": "steps", "steps": 4},
    {"rule": "steps", "block_size": 2},
    {"rule": "steps", "remasking": "random", "stochastic_transfer": True, "steps": 9},
    {"rule": "entropy"},
    {"temperature": 1.3, "seed": 9, "stop": ["e"]},
]


@pytest.fixture(scope="module")
def models(checkpoints):
    return {name: load(path, dtype="float32", device="cpu") for name, path in checkpoints.items()}


@pytest.fixture
def serve():
    """Yields a function that serves a model and returns a backend on it."""
    open_ones = []

    def _serve(server, defaults=None, **options):
        here = listening(
            create_app({"tiny": server}, defaults={"tiny": defaults} if defaults else None)
        )
        url = here.__enter__()
        open_ones.append((here, server))
        return EndpointBackend(f"{url}/v1", **options)

    yield _serve
    for here, server in open_ones:
        here.__exit__(None, None, None)
        server.close()


def requests(prompts, **options):
    return [
        GenerateRequest(prompt=p, params=SamplingParams(**{"max_new_tokens": 10} | options))
        for p in prompts
    ]


def answers(backend, asked):
    found = dict(backend.generate(asked))
    return [(found[i].text, found[i].num_tokens, found[i].num_forwards) for i in range(len(asked))]


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_a_servers_own_defaults_change_nothing(models, serve, objective):
    defaults = SamplingSection(
        temperature=2.0,
        rule="steps",
        steps=2,
        block_size=5,
        remasking="random",
        stochastic_transfer=True,
        top_k=3,
        top_p=0.5,
        repetition_penalty=1.5,
        presence_penalty=1.0,
        logit_bias={70: 50.0},
        min_tokens=4,
        stop=("a", "o"),
        remask_threshold=0.4,
        ignore_eos=True,
    )
    lm = models[objective]
    backend = serve(ModelServer(lm, defaults), defaults)
    asked = [each for options in SETTINGS for each in requests([*TEXTS, CHAT], **options)]
    assert answers(backend, asked) == answers(LocalBackend(lm), asked)


def test_what_a_request_cannot_say_is_refused(models, serve):
    defaults = SamplingSection(suppress_tokens=(70,))
    backend = serve(ModelServer(models["bd3lm"], defaults), defaults)
    with pytest.raises(ValueError, match=r"suppress_tokens=\(\): this endpoint samples with \(70,"):
        answers(backend, requests(TEXTS))
    asked = requests(TEXTS, suppress_tokens=[70])
    assert answers(backend, asked) == answers(LocalBackend(models["bd3lm"]), asked)


class Watched(ModelServer):
    """Counts what it is asked; the third request interrupts the client's process."""

    num_asked, interrupts = 0, False

    def generate(self, request, cache_salt=""):
        self.num_asked += 1
        if self.interrupts and self.num_asked == 3:
            interrupt_main_thread()
        return super().generate(request, cache_salt)


def until_it_fails(backend, asked, error):
    kept = {}
    with pytest.raises(error):
        for index, answer in backend.generate(asked):
            kept[index] = answer
    return kept


def test_after_a_refusal_nothing_is_asked_and_nothing_lost(models, serve):
    server = Watched(models["bd3lm"], limits=LimitsSection(max_new_tokens=40))
    backend = serve(server, concurrency=2)
    asked = requests([f"prompt {i}" for i in range(30)])
    asked[3] = requests(["too much"], max_new_tokens=41)[0]
    kept = until_it_fails(backend, asked, openai.BadRequestError)
    assert {0, 1, 2} <= kept.keys() and 3 not in kept
    assert server.num_asked == len(kept) + 1 < 8


def interrupt_main_thread():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_an_interrupt_asks_nothing_more_and_keeps_what_was_under_way(models, serve, interruptible):
    server = Watched(models["bd3lm"])
    backend = serve(server, concurrency=2)
    server.interrupts = True
    asked = requests([f"prompt {i}" for i in range(30)])
    kept = until_it_fails(backend, asked, KeyboardInterrupt)
    assert server.num_asked == len(kept) < 8
    assert signal.getsignal(signal.SIGINT) is interruptible


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_an_interrupt_between_two_answers_is_not_lost(models, serve, interruptible, place):
    """Python swallows what finalizers and callbacks of the garbage collector raise."""
    server = Watched(models["bd3lm"])
    backend = serve(server, concurrency=2)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        for index, _ in backend.generate(requests([f"prompt {i}" for i in range(30)])):
            kept.append(index)
            if len(kept) == 3:
                place()
    assert server.num_asked == len(kept) <= 3 + 2


def test_a_second_interrupt_waits_for_nothing(models, serve, interruptible):
    backend = serve(ModelServer(models["bd3lm"]), concurrency=2)
    first, second = requests(TEXTS[:2])
    was_noted, let_go = threading.Event(), threading.Event()

    def ask(request):
        if request is second:
            was_noted.wait(60)
            interrupt_main_thread()
            let_go.wait(60)
        return Answer(text="", num_tokens=0, num_forwards=0, finish_reason="stop")

    backend._ask = ask
    kept = []
    with pytest.raises(KeyboardInterrupt):
        for index, _ in backend.generate([first, second]):
            kept.append(index)
            signal.raise_signal(signal.SIGINT)
            was_noted.set()
    assert kept == [0] and signal.getsignal(signal.SIGINT) is interruptible
    let_go.set()


def test_an_interrupt_goes_before_a_failure(models, serve, interruptible):
    """Who tries again after a failure must not do so after Ctrl-C."""
    backend = serve(ModelServer(models["bd3lm"]), concurrency=1)

    def ask(request):
        interrupt_main_thread()
        raise ValueError("refused")

    backend._ask = ask
    with pytest.raises(KeyboardInterrupt):
        list(backend.generate(requests(TEXTS)))


def test_answers_that_nobody_wants_any_more_give_the_handler_back(models, serve, interruptible):
    backend = serve(ModelServer(models["bd3lm"]))
    found = backend.generate(requests(TEXTS))
    next(found)
    assert signal.getsignal(signal.SIGINT) is not interruptible
    found.close()
    assert signal.getsignal(signal.SIGINT) is interruptible
    found = backend.generate(requests(TEXTS))
    next(found)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        found.close()
    assert signal.getsignal(signal.SIGINT) is interruptible


BEGUN = [*CHAT, {"role": "assistant", "content": " It is"}]


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_an_answer_that_has_begun_goes_on(models, serve, objective):
    """As one process does it: what the answer begins with is a segment of its own."""
    lm = models[objective]
    segments = (*lm.encode(CHAT), lm.encode(" It is")[0])
    params = SamplingParams(max_new_tokens=10, temperature=1.0)
    wanted, other = (answer.text for answer in lm.generate([segments, CHAT], params))
    assert wanted != other
    backend = serve(ModelServer(lm))
    assert answers(backend, requests([BEGUN], temperature=1.0))[0][0] == wanted

    greedy = lm.generate([segments], SamplingParams(max_new_tokens=10))[0].text
    for each in (backend, LocalBackend(lm)):
        model = A2DHarnessModel(backend=each, pretrained="above")
        context = model.apply_chat_template(BEGUN, add_generation_prompt=False)
        instance = Instance("generate_until", {}, (context, {"max_gen_toks": 10}), 0)
        assert model.generate_until([instance]) == [greedy]


def test_what_is_too_long_loses_its_oldest_tokens(models, serve):
    """The model has 512 positions."""
    lm = models["bd3lm"]
    text = "".join(map(chr, range(32, 127))) * 6
    long = [{"role": "user", "content": text}, *BEGUN[1:], {"role": "user", "content": "Why?"}]
    segments = lm.encode(long)
    surplus = sum(map(len, segments)) - 502
    cut = (segments[0][surplus:], *segments[1:])
    assert len(segments) == 3 and 0 < surplus < len(segments[0])
    params = SamplingParams(max_new_tokens=10, temperature=1.0)
    alone = [[lm.encode(text)[0][-502:]], cut, "one"]
    wanted = [lm.generate([prompt], params)[0].text for prompt in alone]
    for backend in (LocalBackend(lm), serve(ModelServer(lm))):
        asked = requests([text, long, "one"], temperature=1.0)
        found = dict(backend.generate(asked))
        assert [found[i].text for i in range(3)] == wanted
        assert [found[i].is_cut for i in range(3)] == [True, True, False]
        with pytest.raises(ValueError, match=r"max_new_tokens \(512\) leaves no room"):
            answers(backend, requests([text], max_new_tokens=512))


def test_what_a_server_refuses_is_an_empty_answer(models, serve, tmp_path, caplog):
    """And counted; one process may be asked again, so it is not kept."""
    server = Watched(models["bd3lm"], limits=LimitsSection(max_prompt_tokens=20))
    backend = serve(server)
    cache = ResponseCache(tmp_path / "c.sqlite", backend.describe().fingerprint)
    responder = Responder(backend, cache, is_quiet=True)
    for num_asked in (3, 5):
        first, second = responder.generate(requests(["one", "x" * 21]))
        assert (first.is_cut, second.text, second.is_cut) == (False, "", True)
        assert server.num_asked == num_asked
    assert responder.num_cut == 2 and "1 of 2 prompts were too long" in caplog.text


def test_what_is_drawn_is_the_same_over_http(models, serve):
    lm = models["bd3lm"]
    texts = []
    for backend in (LocalBackend(lm), serve(ModelServer(lm))):
        model = A2DHarnessModel(backend=backend, pretrained="above", temperature=1.5, seed=7)
        contexts = ["one", model.apply_chat_template(CHAT), "one"]
        asked = [Instance("generate_until", {}, (c, {"max_gen_toks": 9}), 0) for c in contexts]
        texts.append(model.generate_until(asked))
    assert texts[0] == texts[1] and texts[0][0] != texts[0][2]


def test_a_model_that_changes_under_its_name_is_noticed(models):
    first, second = ModelServer(models["bd3lm"]), ModelServer(models["mdlm"])
    served = {"tiny": first}
    with listening(create_app(served)) as url:
        backend = EndpointBackend(f"{url}/v1")
        answers(backend, requests(TEXTS))
        served["tiny"] = second
        with pytest.raises(ValueError, match="serves another tiny than at the start"):
            answers(backend, requests(TEXTS))
    first.close()
    second.close()
