"""Other people's clients against the endpoint, each in a process of its own: make test-clients."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import a2d_ray
from a2d_ray import SamplingParams
from a2d_ray.config import SamplingSection
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.closeness import assert_close
from tests.tiny import save_tiny_ar

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(os.environ.get("A2D_CLIENTS", ROOT / ".venv-clients"))
SCRIPTS = ROOT / "tests" / "clients"
PACKAGES = ENVIRONMENTS / "node"
NODE = shutil.which("node") if (PACKAGES / "node_modules").exists() else None
OFFLINE = {
    "NO_PROXY": "*",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OPENAI_API_KEY": "none",
    "TOKENIZERS_PARALLELISM": "false",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not ENVIRONMENTS.exists(), reason="no clients here: make test-clients"),
]


@dataclass(frozen=True)
class Served:
    """A tiny random model behind the endpoint, and the same model here."""

    url: str
    checkpoint: Path
    lm: a2d_ray.LanguageModel


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """It has room: what frameworks write takes many bytes."""
    directory = tmp_path_factory.mktemp("clients")
    ar = save_tiny_ar(directory / "ar", max_position_embeddings=16_384)
    checkpoint = a2d_ray.convert(str(ar), directory / "a2d")
    options = {"objective": "bd3lm", "block_size": 4}
    lm = a2d_ray.load(checkpoint, dtype="float32", device="cpu", **options)
    server = ModelServer(lm, SamplingSection(max_new_tokens=200))
    with listening(create_app({"tiny": server})) as url:
        yield Served(f"{url}/v1", checkpoint, lm)
    server.close()


def python_of(kind):
    """Of one of the environments that `make test-clients` makes."""
    python = ENVIRONMENTS / kind / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {kind} here: make test-clients")
    return python


def run(*command, cwd=None):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env=OFFLINE | {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*_client.py")), ids=lambda path: path.stem)
def test_a_client_gets_what_it_asks_for(served, script):
    run(python_of("frameworks"), script, served.url)


@pytest.mark.skipif(NODE is None, reason="no node, or no packages in .venv-clients/node")
def test_the_ai_sdk_gets_what_it_asks_for(served):
    run(NODE, SCRIPTS / "ai_sdk_client.mjs", served.url, PACKAGES)


ROWS = [json.loads(line) for line in (SCRIPTS / "harness" / "rows.jsonl").open()]


def harness(version, output, *options):
    """What lm-evaluation-harness got, by task: of each row the responses, in one list."""
    command = [python_of(f"harness-{version}"), "-m", "lm_eval", "--include_path", "."]
    written = ["--output_path", output, "--log_samples"]
    run(*command, *options, *written, cwd=SCRIPTS / "harness")
    found = {}
    for path in output.rglob("samples_tiny_*.jsonl"):
        samples = sorted(map(json.loads, path.open()), key=lambda sample: sample["doc_id"])
        found[path.name.split("_")[2]] = [sample["resps"] for sample in samples]
    return found


def score(lm, context, continuation):
    """Log-probability of a continuation, and whether each of its tokens is the likeliest."""
    ids = [*context, *lm.encode(continuation)[0]]
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=1, rule="ar", ignore_eos=True)
    (answer,) = lm.generate([ids], params)
    entries = answer.prompt_logprobs[len(context) - 1 :]
    is_greedy = all(entry.token_id == entry.top[0][0] for entry in entries)
    return sum(entry.logprob for entry in entries), is_greedy


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_the_harness_gets_texts_and_likelihoods_of_the_python_api(served, tmp_path, version):
    lm = served.lm
    address = f"model=tiny,base_url={served.url}/completions,max_retries=1"
    found = harness(
        version,
        tmp_path,
        *("--model", "local-completions"),
        *("--model_args", f"{address},tokenizer={served.checkpoint},num_concurrent=2"),
        *("--tasks", "tiny_choose,tiny_read,tiny_write"),
    )
    params = SamplingParams(max_new_tokens=8, stop=("zz",))
    answers = lm.generate([row["question"] for row in ROWS], params)
    assert [resps for ((resps,),) in found["write"]] == [answer.text for answer in answers]
    bos = lm.tokenizer.bos_token_id
    for row, likelihoods, ((rolling, *_),) in zip(
        ROWS, found["choose"], found["read"], strict=True
    ):
        context = list(lm.encode(row["question"])[0])
        for choice, ((total, is_greedy),) in zip(row["choices"], likelihoods, strict=True):
            expected, is_likeliest = score(lm, context, f" {choice}")
            assert_close(float(total), expected)
            assert str(is_greedy) == str(is_likeliest)
        text = f"{row['question']} {row['choices'][0]}"
        assert_close(float(rolling), score(lm, [bos], text)[0])


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_the_harness_gets_answers_to_chats(served, tmp_path, version):
    found = harness(
        version,
        tmp_path,
        *("--model", "local-chat-completions", "--apply_chat_template"),
        *("--model_args", f"model=tiny,base_url={served.url}/chat/completions,max_retries=1"),
        *("--tasks", "tiny_write"),
    )
    chats = [[{"role": "user", "content": row["question"]}] for row in ROWS]
    answers = served.lm.generate(chats, SamplingParams(max_new_tokens=8, stop=("zz",)))
    assert [resps for ((resps,),) in found["write"]] == [answer.text for answer in answers]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_load_generator_counts_every_answer_and_its_tokens(served, tmp_path, path):
    guidellm = python_of("load").with_name("guidellm")
    run(
        *(guidellm, "run", "--disable-console-interactive"),
        *("--backend", f"kind=openai_http,target={served.url},model=tiny,request_format={path}"),
        *("--profile", "kind=concurrent,streams=3"),
        *("--constraint", "kind=max_requests,count=9"),
        *("--data", "kind=synthetic_text,prompt_tokens=40,output_tokens=12"),
        *("--tokenizer", f"kind=huggingface_auto,model={served.checkpoint}"),
        *("--output", f"kind=json,path={tmp_path / 'load.json'}"),
    )
    (benchmark,) = json.loads((tmp_path / "load.json").read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"] and not requests["incomplete"]
    assert len(requests["successful"]) >= 6  # it leaves out what ends with the run
    for found in requests["successful"]:
        assert found["output_tokens"] == 12 and found["prompt_tokens"] > 30
        assert 0 < found["time_to_first_token_ms"] < 1000 * found["request_latency"]
