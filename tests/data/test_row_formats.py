"""Rows as the world writes them: what a format defines is read, and what is not read is named."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pytest

from a2d_ray.config import DataSection
from a2d_ray.data.packing.statistics import Report
from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.mixture import parse_spec
from a2d_ray.data.sources.reading import read_unit, reading_units
from a2d_ray.data.sources.shards import resolve_source
from tests.data.test_sources import examples, write_jsonl

Q, A = "What is 2 + 2?", "4"
USER = {"role": "user", "content": Q}
ANSWER = {"role": "assistant", "content": A}
PAIR = (("user", Q), ("assistant", A))
SYSTEM = ("system", "Be brief.")
THOUGHT = (("user", Q), ("assistant", "<think>\n2+2\n</think>\n\n4"))
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]

READ = {
    "alpaca with system": (
        {"instruction": Q, "input": "", "output": A, "system": "Be brief."},
        Example(messages=(SYSTEM, *PAIR)),
    ),
    "alpaca with history": (
        {"instruction": Q, "output": A, "system": "", "history": [["Hi.", "Ho."]]},
        Example(messages=(("user", "Hi."), ("assistant", "Ho."), *PAIR)),
    ),
    "alpaca with all": (
        {**{"instruction": "Add.", "input": "2, 2", "output": A}, "system": "Be brief.",
         "history": [["Hi.", "Ho."]]},
        Example(messages=(SYSTEM, ("user", "Hi."), ("assistant", "Ho."),
                          ("user", "Add.\n\n2, 2"), ("assistant", A))),
    ),
    "orca": (
        {"system_prompt": "Be brief.", "question": Q, "response": A},
        Example(messages=(SYSTEM, *PAIR)),
    ),
    "sharegpt with system": (
        {"system": "Be brief.", "conversations": SHAREGPT},
        Example(messages=(SYSTEM, *PAIR)),
    ),
    "sharegpt with tools as text": (
        {"conversations": SHAREGPT, "tools": json.dumps([TOOL])},
        Example(messages=PAIR, tools=json.dumps([TOOL])),
    ),
    "messages with tools": (
        {"messages": [USER, ANSWER], "tools": [TOOL | {"strict": None}]},
        Example(messages=PAIR, tools=json.dumps([TOOL])),
    ),
    "no tools": ({"messages": [USER, ANSWER], "tools": []}, Example(messages=PAIR)),
    "empty tools": ({"messages": [USER, ANSWER], "tools": "[]"}, Example(messages=PAIR)),
    "the system message twice": (
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, USER,
                                             ANSWER]},
        Example(messages=(SYSTEM, *PAIR)),
    ),
    "weight 0": (
        {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}]},
        Example(messages=PAIR * 2, unlearned=(1,)),
    ),
    "weight 0 behind a system column": (
        {"system": "Be brief.", "messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER]},
        Example(messages=(SYSTEM, *PAIR, *PAIR), unlearned=(2,)),
    ),
    "train: false": (
        {"messages": [USER, ANSWER | {"train": False}, USER, ANSWER]},
        Example(messages=PAIR * 2, unlearned=(1,)),
    ),
    "loss: false": (
        {"messages": [USER, ANSWER | {"loss": False}, USER, ANSWER | {"loss": True}]},
        Example(messages=PAIR * 2, unlearned=(1,)),
    ),
    "a number as input": (
        {"instruction": "Add 2.", "input": 2, "output": 4},
        Example(messages=(("user", "Add 2.\n\n2"), ("assistant", A))),
    ),
    "an input that pandas left out": (
        {"instruction": Q, "input": float("nan"), "output": A}, Example(messages=PAIR),
    ),
    "a null weight": (
        {"messages": [USER | {"weight": None}, ANSWER | {"weight": None}]},
        Example(messages=PAIR),
    ),
    **{
        f"{key} of a message": (
            {"messages": [USER, ANSWER | {key: "2+2"}]}, Example(messages=THOUGHT),
        )
        for key in ("reasoning_content", "reasoning", "thinking")
    },
    "reasoning of a pair": (
        {"question": Q, "reasoning": "2+2", "answer": A}, Example(messages=THOUGHT),
    ),
    "reasoning in both places": (
        {"messages": [USER, {"role": "assistant", "reasoning_content": "2+2",
                             "content": "<think>\n2+2\n</think>\n\n4"}]},
        Example(messages=THOUGHT),
    ),
    "TRL's lists": ({"prompt": [USER], "completion": [ANSWER]}, Example(messages=PAIR)),
    "TRL's lists with a system message": (
        {"prompt": [{"role": "system", "content": "Be brief."}, USER], "completion": [ANSWER]},
        Example(messages=(SYSTEM, *PAIR)),
    ),
    "a number as answer": ({"question": Q, "answer": 4}, Example(messages=PAIR)),
    "prompt and response": ({"prompt": Q, "response": A}, Example(messages=PAIR)),
    "query and response": ({"query": Q, "response": A}, Example(messages=PAIR)),
    "chosen beside messages": (
        {"messages": [USER, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]},
        Example(messages=PAIR),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_a_format_defines_is_read(tmp_path, name):
    row, expected = READ[name]
    (found,) = examples(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert found.example == expected, found.reason
    if "chosen" not in row:
        assert not found.unread


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": A, "rejected": "5"},
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        {"prompt": Q, "completion": "5", "label": False},
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]},
        {"question": Q, "answer": "", "chosen": A, "rejected": "5"},
    ],
)
def test_preferences_are_refused_by_name(tmp_path, row):
    with pytest.raises(ValueError, match=r"rows\.jsonl holds preferences \((chosen|completion)"):
        examples(write_jsonl(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"text": "To be.", "title": "Hamlet", "year": 1603, "notes": " "}, {"column title"}),
        ({"instruction": Q, "output": A, "code": "2 + 2", "tags": ["x"]},
         {"column code", "column tags"}),
        ({"messages": [USER | {"name": "Ann"}, ANSWER | {"refusal": None, "audio": {"id": "x"}}]},
         {"key messages[].name", "key messages[].audio"}),
        ({"conversations": [SHAREGPT[0], SHAREGPT[1] | {"comment": "good"}]},
         {"key conversations[].comment"}),
        ({"prompt": [USER | {"name": "Ann"}], "completion": [ANSWER]}, {"key prompt[].name"}),
        ({"messages": [USER, ANSWER], "history": [["a", "b"]]}, {"column history"}),
        ({"messages": [USER, ANSWER | {"thinking": ["2", "+2"]}]}, {"key messages[].thinking"}),
        ({"system": ["Be brief."], "messages": [USER, ANSWER]}, {"column system"}),
        ({"instruction": Q, "input": {"a": "b"}, "output": A}, {"column input"}),
        (
            {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
            {"column chat_template_kwargs"},
        ),
    ],
)  # fmt: skip
def test_text_that_is_not_read_is_named(tmp_path, row, unread):
    (found,) = examples(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert found.example is not None and found.unread == unread


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), True, None, [4]])
def test_what_is_no_answer_is_not_learned_as_text(tmp_path, answer):
    (found,) = examples(write_jsonl(tmp_path / "rows.jsonl", [{"question": Q, "answer": answer}]))
    assert (found.example, found.reason) == (None, "content is not a string")


def test_the_report_counts_what_was_not_read(tmp_path):
    rows = [{"text": "a", "title": "x"}, {"text": "b", "title": ""}, {"text": "c", "title": "z"}]
    write_jsonl(tmp_path / "set" / "rows.jsonl", rows)
    (tmp_path / "set" / "README.txt").write_text("About this.")
    for number in range(7):
        (tmp_path / "set" / f"{number}.png").touch()
    source = resolve_source(parse_spec(str(tmp_path / "set"))[0])
    assert [shard.path[-10:] for shard in source.train] == ["rows.jsonl"]
    data = DataSection(spec=str(tmp_path / "set"), test_fraction=0)
    tables = [t for unit in reading_units([source], data, {}) for t in read_unit(unit)]
    tallies = [
        [entry["source"], json.loads(entry["tally"])]
        for table in tables
        for entry in table.to_pylist()
        if entry["tally"]
    ]
    report = Report(
        [{"rows": {}, "dropped": {}, "offenders": [], "tallies": tallies}], [source.spec.key]
    )
    assert report.unread({source.spec.key: source.stray}) == {
        source.spec.key: {"column title": 2, "file README.txt": 1, "file *.png": 7}
    }
    assert report.languages() == {}


def test_an_adapter_of_one_s_own_is_given_every_column(tmp_path, monkeypatch):
    (tmp_path / "whole_rows.py").write_text("def take(row):\n    return {'text': row['body']}\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"body": "To be.", "title": "Hamlet"}])
    (found,) = examples(path, adapter="whole_rows:take")
    assert found.example == Example(text="To be.") and not found.unread


def test_what_an_adapter_of_one_s_own_raises_is_told_as_its_error(tmp_path, monkeypatch):
    (tmp_path / "wrong_rows.py").write_text("def take(row):\n    return {'text': row['boby']}\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"body": "To be.", "title": "Hamlet"}])
    with pytest.raises(
        ValueError, match=r"data\.adapter=wrong_rows:take raised KeyError"
    ) as caught:
        examples(path, adapter="wrong_rows:take")
    assert '\'boby\': the row was {"body": "To be."' in str(caught.value)


def test_a_stray_file_of_another_shape_is_named(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER]}])
    (tmp_path / "package.json").write_text('{\n "name": "x",\n "version": "1"\n}\n')
    with pytest.raises(ValueError, match=r"package\.json has the columns name, version"):
        examples(tmp_path)


ROWS = [{"instruction": f"q{i}", "output": f"é{i}"} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = [f"q{i}{{}}é{i}" for i in range(3)]


def table(mark):
    return "\n".join(line.format(mark) for line in ["instruction{}output", *TABLE])


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


FILES = {
    "marked.jsonl": ("\ufeff" + LINES).encode(),
    "marked.jsonl.gz": gzip.compress(("\ufeff" + LINES).encode()),
    "marked.json": ("\ufeff" + json.dumps(ROWS)).encode(),
    "marked.csv": ("\ufeff" + table(",")).encode(),
    "rows.ndjson": LINES.encode(),
    "rows.jsonl.zst": zstd(LINES.encode()),
    "rows.json.zst": zstd(json.dumps(ROWS).encode()),
    "rows.jsonl.bz2": bz2.compress(LINES.encode()),
    "rows.csv.xz": lzma.compress(table(",").encode()),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "list.jsonl": json.dumps(ROWS, indent=1).encode(),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": LINES.encode(),
    "holder.json": json.dumps({"data": ROWS}).encode(),
    "described.json": json.dumps(
        {"version": "1", "rows": ROWS, "splits": ["a"]}, indent=1
    ).encode(),
    "semicolons.csv": table(";").encode(),
    "tabs.tsv": table("\t").encode(),
    "tabs.csv": table("\t").encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_way_to_write_a_file_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    expected = [(("user", f"q{i}"), ("assistant", f"é{i}")) for i in range(3)]
    assert [row.example.messages for row in examples(tmp_path / name)] == expected


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_one_row(tmp_path, suffix, indent):
    path = tmp_path / f"row{suffix}"
    path.write_text(json.dumps({"messages": [USER, ANSWER]}, indent=indent))
    assert [row.example.messages for row in examples(path)] == [PAIR]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf_16_is_refused_by_name(tmp_path, name, encoding):
    text = table(",") if name.endswith("csv") else LINES
    (tmp_path / name).write_text(text, encoding=encoding)
    with pytest.raises(ValueError, match=r"is UTF-16 or UTF-32: save it as UTF-8"):
        examples(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_damaged_packed_file_is_named(tmp_path, suffix):
    path = tmp_path / f"rows.jsonl{suffix}"
    pack = {".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    data = pack(LINES.encode() * 50)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"rows\.jsonl\S+ cannot be read as jsonl"):
        examples(path)
