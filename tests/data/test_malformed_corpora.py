"""Corpora that cannot be trained on: an error that names the file or the row, and nothing left."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from a2d_ray.data.pipeline import prepare
from tests.commands import ROOT
from tests.data.test_pipeline import conversation, sections, write_jsonl
from tests.tiny import save_tiny_ar

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return str(save_tiny_ar(tmp_path_factory.mktemp("model")))


def user(content="q", **more):
    return {"role": "user", "content": content, **more}


def assistant(content="a", **more):
    return {"role": "assistant", "content": content, **more}


def lines(*rows):
    return {"rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def chat(*messages):
    return lines({"messages": list(messages)})


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


GOOD = lines(conversation(1))["rows.jsonl"]
DEEP = b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}\n"
CORPORA = {
    "an empty file": ({"rows.jsonl": b""}, "rows.jsonl"),
    "blank lines": ({"rows.jsonl": b"\n\n\n"}, "rows.jsonl"),
    "no files": ({"notes.md": b"hi"}, "corpus"),
    "cut lines": ({"rows.jsonl": GOOD + GOOD[:-9]}, r"rows\.jsonl:2: invalid JSON"),
    "numbers": ({"rows.jsonl": b"1\n2\n"}, "rows.jsonl"),
    "lists": ({"rows.jsonl": b"[1]\n[2]\n"}, "rows.jsonl"),
    "unknown columns": (lines({"foo": "bar"}), r"rows\.jsonl has the columns foo"),
    "another shape behind": (lines(conversation(1), {"foo": "bar"}), r"rows\.jsonl:2: "),
    "another shape in a file": ({"a.jsonl": GOOD, "b.jsonl": b'{"foo": "x"}\n'}, r"b\.jsonl"),
    "messages as a text": (lines({"messages": "hi"}), r"rows\.jsonl:1: "),
    "a message without content": (chat(user(), {"role": "assistant"}), r"rows\.jsonl:1: "),
    "an unknown role": (chat({"role": "wizard", "content": "x"}), "unknown role 'wizard'"),
    "an answer first": (chat(assistant(), user()), r"rows\.jsonl:1: "),
    "no answer": (chat(user()), r"rows\.jsonl:1: "),
    "an image": (
        chat(user([{"type": "image_url", "image_url": {"url": "x"}}]), assistant()),
        r"rows\.jsonl:1: ",
    ),
    "a weight of 0.5": (chat(user(), assistant(weight=0.5)), r"rows\.jsonl:1: .*weight"),
    "a preference": (lines({"prompt": "q", "chosen": "a", "rejected": "b"}), "preference"),
    "nested without end": ({"rows.jsonl": DEEP}, r"rows\.jsonl"),
    "a cut parquet file": ({"rows.parquet": parquet(text=["a"] * 99)[:-20]}, r"rows\.parquet"),
    "numbers as messages": ({"rows.parquet": parquet(messages=[1, 2])}, r"rows\.parquet:1: "),
    "a table without rows": ({"rows.csv": b"instruction,output\n"}, r"rows\.csv"),
    "ragged rows": ({"rows.csv": b"instruction,output\na,b,c,d\n"}, r"rows\.csv"),
    "a cut archive": ({"rows.jsonl.gz": gzip.compress(GOOD * 99)[:-30]}, r"rows\.jsonl\.gz"),
    "not an archive": ({"rows.jsonl.gz": GOOD}, r"rows\.jsonl\.gz"),
    "Latin-1": ({"rows.jsonl": '{"text": "é"}\n'.encode("latin-1")}, r"rows\.jsonl"),
    "UTF-16": ({"rows.jsonl": '{"text": "é"}\n'.encode("utf-16")}, r"rows\.jsonl.*UTF-16"),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_malformed_corpus_is_named_and_leaves_nothing(ray_local, tmp_path, model_path, name):
    files, message = CORPORA[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for file, content in files.items():
        (corpus / file).write_bytes(content)
    data, objective = sections(tmp_path, str(corpus), test_fraction=0)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(data, objective, model_path)
    text = str(caught.value)
    assert not any(word in text for word in ("UDF", "Traceback", "ray::", "DataContext")), text
    packed = tmp_path / "packed"
    assert not packed.exists() or not [*packed.iterdir()]


FULL_DISK = """
mount -t tmpfs -o size=300k tmpfs "$1/packed" || exit 77
shift 1
"$@"
first=$?
ls -A "$PACKED" >&2
mount -o remount,size=64m "$PACKED"
"$@" >/dev/null || exit 78
exit $first
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_next_try_goes_on(tmp_path, model_path):
    write_jsonl(tmp_path / "rows.jsonl", [conversation(i, turns=3) for i in range(800)])
    packed = tmp_path / "packed"
    packed.mkdir()
    options = {
        "model.path": model_path,
        "data.spec": tmp_path / "rows.jsonl",
        "data.packed_path": packed,
        "data.max_length": 256,
        "data.tokens_per_row": 1024,
    }
    job = [sys.executable, "jobs/prepare_data.py", *(f"{k}={v}" for k, v in options.items())]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", tmp_path, *job],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PACKED": str(packed)},
        timeout=280,
    )
    if done.returncode in (1, 77) and "mount" in done.stderr + done.stdout:
        pytest.skip("no file system of one's own may be mounted here")
    assert done.returncode == 2, done.stderr[-3000:]
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{packed} is full" in error and "make room" in error
    assert "UDF" not in done.stderr
    after = done.stderr[done.stderr.index(error) + len(error) :]
    assert ".packed" not in after and "manifest" not in after
