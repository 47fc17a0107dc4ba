"""Other people's clients against the endpoint, each in a process of its own: make test-clients."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import a2d_ray
from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.tiny import save_tiny_ar

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("A2D_CLIENTS", ROOT / ".venv-clients"))
SCRIPTS = ROOT / "tests" / "clients"
PYTHON = ENVIRONMENT / "bin" / "python"
PACKAGES = ENVIRONMENT / "node"
NODE = shutil.which("node") if (PACKAGES / "node_modules").exists() else None
OFFLINE = {"NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no clients here: make test-clients"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Of a server on a tiny random model with room: what frameworks write takes many bytes."""
    directory = tmp_path_factory.mktemp("clients")
    ar = save_tiny_ar(directory / "ar", max_position_embeddings=16_384)
    checkpoint = a2d_ray.convert(str(ar), directory / "a2d")
    options = {"objective": "bd3lm", "block_size": 4}
    lm = a2d_ray.load(checkpoint, dtype="float32", device="cpu", **options)
    server = ModelServer(lm, SamplingSection(max_new_tokens=200))
    with listening(create_app({"tiny": server})) as url:
        yield f"{url}/v1"
    server.close()


def run(*command):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=240,
        env=OFFLINE | {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*_client.py")), ids=lambda path: path.stem)
def test_a_client_gets_what_it_asks_for(url, script):
    run(PYTHON, script, url)


@pytest.mark.skipif(NODE is None, reason="no node, or no packages in .venv-clients/node")
def test_the_ai_sdk_gets_what_it_asks_for(url):
    run(NODE, SCRIPTS / "ai_sdk_client.mjs", url, PACKAGES)
