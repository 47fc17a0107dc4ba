"""Answers over HTTP, from a real server: those of one process, whatever the server's defaults are
and whatever fails."""

import os
import signal

import openai
import pytest

from a2d_ray import SamplingParams, load
from a2d_ray.benchmarks.http_load import listening
from a2d_ray.config import LimitsSection, SamplingSection
from a2d_ray.evaluation.backends import LocalBackend
from a2d_ray.evaluation.endpoint import EndpointBackend
from a2d_ray.evaluation.requests import GenerateRequest
from a2d_ray.serving.app import create_app
from a2d_ray.serving.server import ModelServer

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
            os.kill(os.getpid(), signal.SIGINT)
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


def test_an_interrupt_asks_nothing_more_and_keeps_what_was_under_way(models, serve):
    server = Watched(models["bd3lm"])
    backend = serve(server, concurrency=2)
    server.interrupts = True
    asked = requests([f"prompt {i}" for i in range(30)])
    kept = until_it_fails(backend, asked, KeyboardInterrupt)
    assert server.num_asked == len(kept) < 8
