"""A tiny random model behind the real application."""

from pathlib import Path

import pytest

import a2d_ray
from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from tests.serving.in_process import Client
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A converted tiny model."""
    directory = tmp_path_factory.mktemp("serving")
    return a2d_ray.convert(str(save_tiny_ar(directory / "ar")), directory / "a2d")


@pytest.fixture(scope="session")
def lm(checkpoint) -> a2d_ray.LanguageModel:
    """The tiny model, to be sampled in blocks of four."""
    return a2d_ray.load(checkpoint, dtype="float32", device="cpu", objective="bd3lm", block_size=4)


@pytest.fixture(scope="session")
def roomy_lm(tmp_path_factory) -> a2d_ray.LanguageModel:
    """One with room: tools take many bytes, and under a grammar a random model rambles."""
    directory = tmp_path_factory.mktemp("roomy")
    ar = save_tiny_ar(directory / "ar", max_position_embeddings=2048)
    checkpoint = a2d_ray.convert(str(ar), directory / "a2d")
    options = {"objective": "bd3lm", "block_size": 4}
    return a2d_ray.load(checkpoint, dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def roomy(roomy_lm):
    """Speaks to the application over it."""
    server = ModelServer(roomy_lm, SamplingSection(max_new_tokens=200))
    yield Client(create_app({"tiny": server}))
    server.close()


@pytest.fixture
def server(lm):
    """The tiny model's server; answers have 12 tokens unless a request says otherwise."""
    server = ModelServer(lm, SamplingSection(max_new_tokens=12))
    yield server
    server.close()


@pytest.fixture
def client(server) -> Client:
    """Speaks to the application over the tiny model."""
    return Client(create_app({"tiny": server}))
