"""Where rows come from, in the schemas of the public data sets (the rows are ours)."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.mixture import check_spec, parse_spec
from a2d_ray.data.sources.shards import Shape, read_shard, resolve_source

PAIR = (("user", "What is 2 + 2?"), ("assistant", "4"))
TOOLS = "tool messages are not supported"
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
TURNS = [{"role": role, "content": content} for role, content in PAIR]
SCHEMAS = {
    "tulu-3": {"id": "a_1", "messages": TURNS, "source": "ai2-adapt-dev/x"},
    "smoltalk": {"messages": TURNS, "source": "smol-magpie-ultra"},
    "ultrachat": {"prompt": "What is 2 + 2?", "prompt_id": "f0", "messages": TURNS},
    "opc-sft": {"instruction": "What is 2 + 2?", "output": "4", "tag": "x", "seq_id": 3},
    "alpaca": {"instruction": "What is 2 + 2?", "input": "", "output": "4", "text": "Below is"},
    "sharegpt": {
        "id": "x",
        "conversations": [
            {"from": "human", "value": "What is 2 + 2?"},
            {"from": "gpt", "value": "4"},
        ],
    },
    "gsm8k": {"question": "What is 2 + 2?", "answer": "4"},
    "opc-sft-stage2": {
        **{"seq_id": 1, "instruction": "What is 2 + 2?", "output": "4", "code": "4"},
        **{"entry_point": "add", "testcase": ["assert add(2, 2) == 4"]},
    },
    "multi-part": {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in PAIR
        ]
    },
    "completion": {"prompt": "What is 2 + 2?", "completion": "4"},
}


def examples(spec, split="train", **shape):
    source = resolve_source(parse_spec(str(spec))[0])
    how = Shape(**shape)
    how.find(source.columns, source.peeked)
    rows = [row for shard in getattr(source, split) for row in read_shard(shard, source.spec, how)]
    return [row for row in rows if not row.is_other_language]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_shape_gives_the_same_conversation(tmp_path, name):
    (row,) = examples(write_jsonl(tmp_path / "rows.jsonl", [SCHEMAS[name]]))
    assert row.example == Example(messages=PAIR)


def test_roles_are_known_by_any_name_and_in_any_case(tmp_path):
    shapes = [
        {"messages": [{"role": r, "content": c} for r, c in (("User", TURNS[0]["content"]),
                                                             (" ASSISTANT", TURNS[1]["content"]))]},
        {"messages": [{"role": "human", "content": TURNS[0]["content"]},
                      {"role": "gpt", "content": TURNS[1]["content"]}]},
        {"conversations": [{"from": "Human", "value": TURNS[0]["content"]},
                           {"from": "GPT", "value": TURNS[1]["content"]}]},
    ]  # fmt: skip
    for number, shape in enumerate(shapes):
        (row,) = examples(write_jsonl(tmp_path / f"{number}.jsonl", [shape]))
        assert row.example == Example(messages=PAIR), row.reason
    tool = {"messages": [*TURNS, {"role": "Tool", "content": "4"}]}
    (row,) = examples(write_jsonl(tmp_path / "tool.jsonl", [tool]))
    assert row.reason == "tool messages are not supported"


def test_alpaca_s_input_follows_the_instruction(tmp_path):
    row = {"instruction": "Add.", "input": "2, 2", "output": "4"}
    (found,) = examples(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert found.example.messages == (("user", "Add.\n\n2, 2"), ("assistant", "4"))


def test_plain_text_by_column_or_by_text_field(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"Text": "To be.", "text": "Or not."}])
    assert examples(path)[0].example == Example(text="Or not.")
    assert examples(path, text_field="Text")[0].example == Example(text="To be.")
    with pytest.raises(ValueError, match=r"data.text_field=txt .*: it has Text, text"):
        examples(path, text_field="txt")


def test_every_file_format_gives_the_same_rows(tmp_path):
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(600)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "lines.json").write_text((tmp_path / "rows.jsonl").read_text())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    lines = ["instruction,output", *(f"q{i},a{i}" for i in range(600))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write((tmp_path / "rows.jsonl").read_bytes())
    expected = [Example(messages=(("user", f"q{i}"), ("assistant", f"a{i}"))) for i in range(600)]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 6
    for name in names:
        assert [row.example for row in examples(tmp_path / name)] == expected, name


def test_save_to_disk_keeps_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_list([{"messages": TURNS}] * n)
        for name, n in (("train", 3), ("test", 2))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    assert len(examples(tmp_path / "both")) == 3
    assert len(examples(tmp_path / "both", "test")) == 2
    assert len(examples(tmp_path / "one")) == 3


def test_splits_and_configurations_of_a_hub_mirror(tmp_path):
    for config in ("all", "maths"):
        for split, count in (("train_sft", 3), ("test_sft", 2), ("train_gen", 7)):
            for part in range(2):
                pq.write_table(
                    pa.Table.from_pylist([{"messages": TURNS}] * count),
                    _folder(tmp_path / config) / f"{split}-{part:05d}-of-00002.parquet",
                )
    assert len(examples(f"{tmp_path}[name:maths]")) == 6
    assert len(examples(f"{tmp_path}[name:maths]", "test")) == 4
    assert len(examples(f"{tmp_path}[name:maths,train_split:train_gen]")) == 14
    assert len(examples(tmp_path)) == 6  # "all" holds the others
    with pytest.raises(ValueError, match=r"no configuration 'math': it holds all, maths"):
        examples(f"{tmp_path}[name:math]")
    with pytest.raises(ValueError, match=r"no split 'valid': it has test_sft, train_gen"):
        examples(f"{tmp_path}[test_split:valid]")


def _folder(path):
    path.mkdir(exist_ok=True)
    return path


def test_a_language_is_chosen_by_column_then_fence_then_word(tmp_path):
    def pair(answer, **columns):
        return {"instruction": "Write it.", "output": answer, **columns}

    rows = [
        pair("x", lang="Python"),
        pair("```python\nx\n```", lang="java"),
        pair("```python\nx\n```"),
        pair("```js\npython()\n```"),
        pair("in Python it is x"),
        pair("x"),
    ]
    found = examples(f"{write_jsonl(tmp_path / 'rows.jsonl', rows)}[lang:python]")
    assert [(row.number, row.language_by) for row in found] == [
        (1, "column lang"),
        (3, "fenced code"),
        (5, "name in the text"),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": None}, "no messages"),
        ({"messages": []}, "no messages"),
        ({}, "no messages"),
        ({"messages": "hi"}, "messages are not a list of objects"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
        ({"messages": [{"content": "x"}]}, "unknown role None"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is not a string"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content is not a string"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty content"),
        ({"messages": [{"role": "user", "content": None}]}, "content is not a string"),
        ({"messages": [TURNS[0], {"role": "tool", "content": "4"}]}, TOOLS),
        ({"messages": [TURNS[0], {"role": "assistant", "tool_calls": [{"id": "x"}]}]}, TOOLS),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "a part of the content is not text"),
        ({"messages": TURNS[:1]}, "no answer"),
        ({"messages": TURNS[1:]}, "starts with an answer"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": 0}]}, "no answer to learn"),
        ({"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]}, "weight 0.5 of a message is nei"),
        ({"messages": TURNS, "tools": "{"}, "tools are not JSON"),
        ({"messages": TURNS, "tools": {"name": "f"}}, "tools are not a list of objects"),
        (
            {"system": "S", "messages": [{"role": "system", "content": "T"}, *TURNS]},
            "two system messages",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "invalid Unicode"),
        ([1], "not an object"),
    ],
)
def test_a_malformed_row_has_a_place_and_a_reason(tmp_path, row, reason):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}, row])
    good, bad = examples(path)
    assert good.example is not None
    assert (bad.example, bad.number) == (None, 2) and bad.reason.startswith(reason)


def test_broken_lines_are_malformed_rows(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}])
    with path.open("ab") as file:
        file.write(b'{"messages": \n{"text": "\xff"}\n')
    assert [row.reason for row in examples(path)] == [None, "invalid JSON", "invalid UTF-8"]


def test_an_empty_system_message_is_allowed(tmp_path):
    row = {"messages": [{"role": "system", "content": ""}, *TURNS]}
    (found,) = examples(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert found.example.messages[0] == ("system", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", r"no readable rows: .*rows\.jsonl is empty"), ("{\n", r"rows\.jsonl:1: invalid JSON")],
)
def test_a_source_without_rows_is_an_error(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        examples(tmp_path / "rows.jsonl")


def test_unknown_columns_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no data files"):
        examples(tmp_path)
    with pytest.raises(ValueError, match="has the columns a, b: need messages"):
        examples(write_jsonl(tmp_path / "rows.jsonl", [{"a": 1, "b": 2}]))


def test_the_identity_follows_the_files(tmp_path):
    spec = parse_spec(str(write_jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}])))[0]
    before = resolve_source(spec).identity
    assert resolve_source(spec).identity == before
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}] * 2)
    assert resolve_source(spec).identity != before


def test_embedded_sets_have_their_own_splits():
    assert len(examples("embedded/sums[train:7,test:3]")) == 7
    assert len(examples("embedded/sums[train:7,test:3]", "test")) == 3


def test_a_directory_a_glob_and_a_uri_read_the_same_files(tmp_path, monkeypatch):
    for split, count in (("train", 3), ("test", 2)):
        for part in range(2):
            write_jsonl(tmp_path / "set" / f"{split}-{part}.jsonl", [{"messages": TURNS}] * count)
    (tmp_path / "set" / "notes.md").write_text("no data")
    for name in ("{root}/set", "{root}/set/*.jsonl", "file://{root}/set", "file://{root}/set/t*"):
        spec = name.format(root=tmp_path)
        assert (len(examples(spec)), len(examples(spec, "test"))) == (6, 4), name
    assert len(examples(f"file://{tmp_path}/set/train-?.jsonl")) == 6
    assert len(examples(f"file://{tmp_path}/**/train-1.jsonl")) == 3
    assert len(examples(f"{tmp_path}/set/train-1.jsonl")) == 3
    monkeypatch.setenv("A2D_DATASETS_DIR", str(tmp_path))
    assert len(examples("set")) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{root}/*.jsonl", "matches no file"),
        ("ftp://host/x", "cannot be read by ftp://"),
        ("file://{root}/missing", "does not exist"),
        ("s3://a bucket/x", "cannot be listed"),
        ("file://{root}/a**b", "cannot be listed: Invalid pattern"),
    ],
)
def test_what_is_not_there_is_an_error(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        spec = name.format(root=tmp_path)
        check_spec(spec)
        examples(spec)


def test_a_remote_file_is_opened_when_it_is_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(json.dumps({"messages": TURNS}).encode())
    (row,) = examples(f"file://{path}")
    assert row.example == Example(messages=PAIR)


def test_an_adapter_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "mine_adapters.py").write_text(
        "from a2d_ray.data.sources.adapters import MalformedRowError\n"
        "def pair(row):\n"
        "    if row['bad']:\n"
        "        raise MalformedRowError('marked as bad')\n"
        "    return {'messages': [{'role': 'user', 'content': row['a']},\n"
        "                         {'role': 'assistant', 'content': row['b']}]}\n"
        "def nothing(row):\n"
        "    return row['a']\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"a": PAIR[0][1], "b": "4", "bad": bad} for bad in (False, True)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    good, bad = examples(path, adapter="mine_adapters:pair")
    assert good.example == Example(messages=PAIR) and bad.reason == "marked as bad"
    assert examples(path, adapter="mine_adapters:nothing")[0].reason.startswith("data.adapter")
    for name, message in (
        ("mine_adapters:none", "has no attribute 'none'"),
        ("no_such_module:pair", "must be importable where the job runs"),
        ("mine_adapters:number", "is no function"),
        ("mine_adapters", "write package.module:function"),
    ):
        with pytest.raises(ValueError, match=message):
            examples(path, adapter=name)


def test_shards_of_a_source_may_differ_in_shape(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [SCHEMAS["opc-sft"]])
    write_jsonl(tmp_path / "b.jsonl", [SCHEMAS["tulu-3"]])
    assert [row.example for row in examples(tmp_path)] == [Example(messages=PAIR)] * 2


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps({'messages': TURNS})}\n\n{{broken\n")
    assert [(row.number, row.reason) for row in examples(path)] == [(2, None), (4, "invalid JSON")]
    path = tmp_path / "rows.csv"
    path.write_text('instruction,output\nq,"a\nb"\nq\nq,a,b\nq,a\n')
    reason = "other columns than the header"
    assert [(row.number, row.reason) for row in examples(path)] == [
        (2, None),
        (4, reason),
        (5, reason),
        (6, None),
    ]


def test_invalid_utf_8_is_a_malformed_row_in_every_text_format(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"instruction,output\nq,a\nq,\xff\n")
    assert [row.reason for row in examples(tmp_path / "rows.csv")] == [None, "invalid Unicode"]
    (tmp_path / "x.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"no readable rows: .*x\.txt:1: invalid UTF-8"):
        examples(tmp_path / "x.txt")


def test_a_message_of_a_megabyte_is_read_from_every_format(tmp_path):
    row = {"instruction": "q", "output": "word " * 210_000}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text(f"instruction,output\nq,{row['output']}\n")
    for name in ("rows.jsonl", "rows.parquet", "rows.csv"):
        (found,) = examples(tmp_path / name)
        assert len(found.example.messages[1][1]) > 2**20, name


def test_a_damaged_file_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "rows.parquet")
    data = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"rows.parquet cannot be read as parquet"):
        examples(tmp_path / "rows.parquet")
