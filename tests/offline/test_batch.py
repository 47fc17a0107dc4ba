"""Offline generation: every prompt is answered once, whatever stops the job in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import a2d_ray
from a2d_ray import SamplingParams
from a2d_ray.config import DataSection, GenerateConfig, ObjectiveSection
from a2d_ray.data.pipeline import prepare
from a2d_ray.generation.decoding.params import derive_seed
from a2d_ray.models.checkpoint import save_checkpoint
from a2d_ray.models.directories import file_stamps
from a2d_ray.offline.answers import PartAnswerer, row_prompt
from a2d_ray.offline.batch import BatchReplica, answer_parts
from a2d_ray.offline.parts import plan_batch, read_prompts, write_answers
from tests.tiny import save_tiny_ar, tiny_tokenizer

ROOT = Path(__file__).parent.parent.parent
CHAT = [{"role": "user", "content": "two"}]
ROWS = [
    {"prompt": "one"},
    {"messages": CHAT, "id": "b"},
    {"question": "none"},
    {"prompt": "x" * 600},
    {"messages": [{"role": "user"}]},
    {"prompt": ""},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("batch")
    return a2d_ray.convert(str(save_tiny_ar(directory / "ar")), directory / "a2d")


@pytest.fixture(scope="module")
def lm(checkpoint):
    return a2d_ray.load(checkpoint, dtype="float32", device="cpu", objective="bd3lm", block_size=4)


def make_config(checkpoint, directory, rows=ROWS, **options):
    source = directory / "prompts.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"path": str(checkpoint), "dtype": "float32", "device": "cpu"}
    model |= {"objective": "bd3lm", "block_size": 4}
    values = {"model": model, "input": str(source), "output": str(directory / "out")}
    sampling = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    return GenerateConfig.model_validate({"sampling": sampling, **values, **options})


def test_answers_are_those_of_the_python_api(checkpoint, lm, tmp_path):
    config = make_config(checkpoint, tmp_path, rows_per_part=4, chat=False)
    plan = plan_batch(config)
    assert (plan.num_rows, plan.num_parts, plan.missing) == (6, 2, (0, 1))
    answerer = PartAnswerer(lm, config)
    rows = [r for part in (0, 1) for r in answerer.answer(read_prompts(plan.folder, part))]
    assert [row["index"] for row in rows] == list(range(6))
    assert [json.loads(row["input"]) for row in rows] == ROWS
    options = config.sampling.model_dump()
    for row, prompt in ((rows[0], "one"), (rows[1], CHAT), (rows[5], "")):
        params = SamplingParams(**options | {"seed": derive_seed(5, row["index"])})
        (answer,) = lm.generate([prompt], params)
        assert row["text"] == answer.text and row["token_ids"] == answer.token_ids
        assert row["usage"]["completion_tokens"] == 8 and row["error"] is None
        assert row["usage"]["prompt_tokens"] == sum(map(len, lm.encode(prompt)))
    for row, word in ((rows[2], "no column"), (rows[3], "positions"), (rows[4], "content")):
        assert word in row["error"] and row["text"] is None


def test_choices_and_parquet(checkpoint, lm, tmp_path):
    sampling = {"max_new_tokens": 6, "temperature": 1.0, "n": 2, "logprobs": 0}
    config = make_config(checkpoint, tmp_path, format="parquet", sampling=sampling)
    plan = plan_batch(config)
    rows = PartAnswerer(lm, config).answer(read_prompts(plan.folder, 0))
    write_answers(plan.folder, 0, "parquet", rows, [])
    table = pq.read_table(tmp_path / "out/answers").to_pylist()
    assert table == rows
    assert [(r["index"], r["choice"]) for r in rows][:4] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(rows[0]["logprobs"]) == len(rows[0]["token_ids"])
    assert plan_batch(config).missing == ()


def test_malformed_lines_are_errors_of_their_own(checkpoint, lm, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{nonsense\n')
    config = make_config(checkpoint, tmp_path)
    rows = PartAnswerer(lm, config).answer(read_prompts(plan_batch(config).folder, 0))
    assert rows[0]["error"] is None and "prompts.jsonl, row 2" in rows[1]["error"]


def test_system_prompts_and_templates(checkpoint, lm, tmp_path):
    config = make_config(checkpoint, tmp_path, system="be brief", column="q")
    system = {"role": "system", "content": "be brief"}
    asked = {"role": "user", "content": "one"}
    answered = [asked, {"role": "assistant", "content": "1"}]
    for value in ("one", [asked], [system, asked], answered):
        assert row_prompt({"q": value}, config, lm.tokenizer) == [system, asked]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "/nowhere.jsonl"}, "input="),
        ({"model": {"path": "/nowhere"}}, "/nowhere"),
        ({"output": "/proc/none"}, "output=/proc/none"),
    ],
)
def test_bad_input_fails_before_ray(checkpoint, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plan_batch(make_config(checkpoint, tmp_path, **options))


def test_an_empty_input_is_refused(checkpoint, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        plan_batch(make_config(checkpoint, tmp_path))


def test_another_request_into_the_same_directory_is_refused(checkpoint, tmp_path):
    plan_batch(make_config(checkpoint, tmp_path))
    plan_batch(make_config(checkpoint, tmp_path, num_replicas=2))  # does not change the answers
    with pytest.raises(ValueError, match=r"started with chat=auto, not false: .*another output"):
        plan_batch(make_config(checkpoint, tmp_path, chat=False, sampling={
            "max_new_tokens": 8, "temperature": 1.0, "seed": 6, "ignore_eos": True
        }))  # fmt: skip


def test_a_job_goes_on_with_the_model_that_it_began_with(checkpoint, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    config = make_config(model, tmp_path)
    plan_batch(config)
    (model / "notes.md").write_text("loading does not read this")
    plan = plan_batch(config)
    asked = json.loads((tmp_path / "out/plan.json").read_text())["asked"]
    assert asked["a2d_ray"] == a2d_ray.__version__ and "model.safetensors" in asked["model.files"]
    BatchReplica(config.model_dump(), plan.folder)
    lm = a2d_ray.load(model, dtype="float32", device="cpu")
    answered = json.loads((tmp_path / "out/model.json").read_text())
    assert answered["weights"] == lm.fingerprint()["weights"]
    lm.model.lm_head.weight.data += 1
    lm.model.save_pretrained(model)
    with pytest.raises(ValueError, match=r"started with model\.files\.\S+, not .*another output"):
        plan_batch(config)
    replica = BatchReplica(config.model_dump(), plan.folder)
    with pytest.raises(ValueError, match="answers of other weights"):
        replica({"part": np.array([0])})


def test_a_changed_base_of_adapters_counts(checkpoint, tmp_path):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    shutil.copy(base / "config.json", adapters)
    (adapters / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base)})
    )
    before = file_stamps(str(adapters))
    os.utime(base / "model.safetensors", (1, 1))
    after = file_stamps(str(adapters))
    assert {k for k in before if before[k] != after[k]} == {"base/model.safetensors"}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_the_alternatives_of_each_token_are_written(checkpoint, lm, tmp_path, format):
    sampling = {"max_new_tokens": 8, "logprobs": 2, "ignore_eos": True}
    rows = [{"prompt": "one"}, {"question": "none"}]
    config = make_config(checkpoint, tmp_path, rows, format=format, sampling=sampling, chat=False)
    plan = plan_batch(config)
    answers = PartAnswerer(lm, config).answer(read_prompts(plan.folder, 0))
    write_answers(plan.folder, 0, format, answers, [])
    (path,) = (tmp_path / "out/answers").iterdir()
    if format == "jsonl":
        written, refused = map(json.loads, path.read_text().splitlines())
    else:
        written, refused = pq.read_table(path).to_pylist()
    (expected,) = lm.generate(["one"], SamplingParams(**sampling))
    found = [
        [(top["token_id"], top["logprob"]) for top in place] for place in written["top_logprobs"]
    ]
    assert found == [list(entry.top) for entry in expected.logprobs]
    assert all(len(place) == 2 for place in found) and len(found) == len(written["logprobs"])
    assert refused["top_logprobs"] is None


LETTERS = "abcdefghijklmnopqrstuvwxyz"
TURNS = [*CHAT, {"role": "assistant", "content": "2"}, {"role": "user", "content": "and one?"}]


@pytest.fixture(scope="module")
def original(checkpoint) -> Path:
    """Converted and not trained: its AR mode is the AR original's."""
    directory = checkpoint.parent / "original"
    lm = a2d_ray.load(checkpoint, dtype="float32", device="cpu")
    contract = lm.contract.model_copy(update={"ar_mode": "original", "objective": None})
    save_checkpoint(directory, model=lm.model, tokenizer=lm.tokenizer, contract=contract)
    return directory


@pytest.mark.cluster
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_own_answers_are_rows_to_train_on(original, ray_local, tmp_path, format):
    """Through every stage: a packed document is what the model read and wrote, token for token."""
    rows = [{"prompt": f"question {i}"} for i in range(24)]
    rows += [{"messages": TURNS}, {"nothing": "here"}]
    tokenizer = tiny_tokenizer()
    written = set(tokenizer(LETTERS).input_ids) | {tokenizer.eos_token_id}
    sampling = {
        "rule": "ar",
        "max_new_tokens": 30,
        "temperature": 1.0,
        "suppress_tokens": sorted(set(range(320)) - written),
        "logit_bias": {tokenizer.eos_token_id: 0.5},
    }
    model = {"path": str(original), "dtype": "float32", "device": "cpu"}
    options = {"model": model, "sampling": sampling, "system": "be brief", "format": format}
    config = make_config(original, tmp_path, rows, rows_per_part=10, **options)
    plan = plan_batch(config)
    replica = BatchReplica(config.model_dump(), plan.folder)
    counts = [replica({"part": np.array([part])}) for part in plan.missing]
    lm = a2d_ray.load(original, dtype="float32", device="cpu")
    answers = [a for p in plan.missing for a in read_answers(tmp_path, p, format)]
    expected = []
    for answer in answers:
        if answer["finish_reason"] == "stop" and answer["text"]:
            prompt = lm.encode(row_prompt(json.loads(answer["input"]), config, tokenizer))
            ids = [token for segment in prompt for token in segment]
            expected.append([*ids, *answer["token_ids"], tokenizer.eos_token_id])
    assert 5 < len(expected) < 25 == sum(a["error"] is None for a in answers)  # some were cut
    assert sum(count["num_conversations"][0] for count in counts) == len(expected)

    data = DataSection(
        spec=str(tmp_path / "out/conversations"),
        packed_path=str(tmp_path / "packed"),
        max_length=256,
        tokens_per_row=1024,
        test_fraction=0.2,
    )
    packed = prepare(data, ObjectiveSection(name="bd3lm", block_size=4), str(original))
    found = []
    for split in ("train", "test"):
        for row in packed.read_rows(split, range(packed.num_rows(split))):
            for doc in range(len(row.doc_id_D)):
                found.append(row.ids_C[row.doc_C == doc].tolist())
    assert sorted(found) == sorted(expected)


@pytest.mark.cluster
def test_what_an_actor_refuses_is_one_error_in_its_own_words(checkpoint, ray_local, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    config = make_config(model, tmp_path)
    with pytest.raises(ValueError, match=r"model holds NaN or infinity in model\.norm") as caught:
        list(answer_parts(config, plan_batch(config)))
    assert "\n" not in str(caught.value) and "UDF" not in str(caught.value)


def read_answers(directory, part, format):
    path = directory / f"out/answers/part-{part:06d}.{format}"
    if format == "parquet":
        return pq.read_table(path).to_pylist()
    return list(map(json.loads, path.read_text().splitlines()))


def test_what_the_model_cannot_decode_fails_before_ray(original, tmp_path):
    model = {"path": str(original), "dtype": "float32", "device": "cpu"}
    for rule, message in (("threshold", "not trained"), ("speculate", "needs drafts")):
        with pytest.raises(ValueError, match=message):
            plan_batch(make_config(original, tmp_path, model=model, sampling={"rule": rule}))
    assert plan_batch(make_config(original, tmp_path, model=model, sampling={"rule": "auto"}))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_job_goes_on_and_does_nothing_twice(checkpoint, lm, tmp_path):
    rows = [{"prompt": f"prompt {i}"} for i in range(24)]
    sampling = {"max_new_tokens": 240, "rule": "steps", "ignore_eos": True}
    config = make_config(checkpoint, tmp_path, rows, rows_per_part=2, sampling=sampling, chat=False)
    values = config.model_dump(exclude={"sampling", "engine", "model"})
    values |= {f"model.{k}": v for k, v in config.model.model_dump(exclude_none=True).items()}
    values |= {f"sampling.{k}": v for k, v in sampling.items()}
    overrides = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]
    command = [sys.executable, "jobs/generate.py", *overrides]
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    answers = tmp_path / "out/answers"
    first = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(answers.glob("part-*")) and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in answers.glob("part-*")}
    assert 0 < len(before) < 12
    second = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=250
    )
    assert second.returncode == 0, second.stderr
    # An engine outlives its driver by a moment, and may finish the part that it is in.
    num_done = int(second.stdout.split(" done before")[0].rpartition(" ")[2])
    assert len(before) <= num_done < 12
    assert f"{24 - 2 * num_done} prompts, 0 of them with errors" in second.stdout
    after = {path.name: path.stat().st_mtime_ns for path in answers.glob("part-*")}
    assert len(after) == 12 and before.items() <= after.items()
    found = [json.loads(line) for path in sorted(answers.iterdir()) for line in path.open()]
    assert [row["index"] for row in found] == list(range(24))
    params = SamplingParams(**sampling)
    expected = lm.generate([rows[i]["prompt"] for i in (0, 23)], params)
    assert [found[i]["text"] for i in (0, 23)] == [answer.text for answer in expected]
