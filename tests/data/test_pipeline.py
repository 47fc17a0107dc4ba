"""Ray Data end to end: what was packed, and what each rank reads."""

import contextlib
import json
import threading
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from a2d_ray.config import DataSection, ObjectiveSection
from a2d_ray.data import roles
from a2d_ray.data.packing.summary import print_summary
from a2d_ray.data.pipeline import PackedSet, prepare, to_packed_rows, training_dataset
from tests.tiny import save_tiny_ar, tiny_tokenizer

pytestmark = pytest.mark.cluster
NUM_ROWS = 600


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversation(number, turns=1):
    messages = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {number} {turn}"})
        messages.append({"role": "assistant", "content": "a" * (1 + number % 40)})
    return {"messages": messages}


def sections(root, spec, **options):
    data = DataSection(
        spec=spec,
        packed_path=str(root / "packed"),
        **({"max_length": 128, "tokens_per_row": 600, "test_fraction": 0.1} | options),
    )
    return data, ObjectiveSection(name="bd3lm", block_size=4, views=2)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return str(save_tiny_ar(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def packed(ray_local, tmp_path_factory, model_path):
    root = tmp_path_factory.mktemp("set")
    rows = [conversation(i, turns=1 + i % 3) for i in range(NUM_ROWS)]
    write_jsonl(root / "a.jsonl", rows[:350])
    write_jsonl(root / "b.jsonl", rows[350:])
    return prepare(*sections(root, f"{root}/a.jsonl+{root}/b.jsonl"), model_path)


def spec_of(packed):
    return "+".join(source["name"] for source in packed.manifest["options"]["sources"])


def documents(packed, split):
    """doc_id -> (ids, segments, targets) of every document of a split."""
    found = {}
    for row in packed.read_rows(split, range(packed.num_rows(split))):
        for doc, doc_id in enumerate(row.doc_id_D.tolist()):
            is_here = row.doc_C == doc
            assert doc_id not in found
            found[doc_id] = tuple(
                values[is_here].tolist() for values in (row.ids_C, row.segment_C, row.is_target_C)
            )
    return found


def read_by_ranks(packed, world, rows_per_block, start_row, stop_row):
    """Positions per step, in rank order, as `world` concurrent readers see them."""
    dataset = training_dataset(
        packed, start_row=start_row, stop_row=stop_row, rows_per_block=rows_per_block, seed=3
    )
    seen = [[] for _ in range(world)]
    content = {}

    def read(rank, iterator):
        for batch in iterator.iter_batches(batch_size=rows_per_block, batch_format="pyarrow"):
            positions = batch["position"].to_pylist()
            seen[rank].append(positions)
            rows = to_packed_rows(batch)
            content.update(
                (p, tuple(r.doc_id_D.tolist())) for p, r in zip(positions, rows, strict=True)
            )

    iterators = dataset.streaming_split(world, equal=True)
    threads = [threading.Thread(target=read, args=pair) for pair in enumerate(iterators)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = [sorted(chain.from_iterable(batches)) for batches in zip(*seen, strict=True)]
    return steps, content


@pytest.mark.parametrize("world", [1, 3])
def test_a_step_over_all_ranks_reads_exactly_its_positions(packed, world):
    per_rank = 6 // world
    total = packed.num_rows("train") * 2 // 6 * 6  # into the second epoch
    steps, _ = read_by_ranks(packed, world, per_rank, 0, total)
    assert steps == [list(range(s, s + 6)) for s in range(0, total, 6)]


def test_a_restart_equals_the_suffix_for_another_world(packed):
    total = packed.num_rows("train") // 4 * 4
    _, whole = read_by_ranks(packed, 1, 4, 0, total)
    steps, rest = read_by_ranks(packed, 2, 2, 8, total)
    assert steps[0] == [8, 9, 10, 11]
    assert rest == {p: ids for p, ids in whole.items() if p >= 8}


def test_an_epoch_holds_every_document_once_and_epochs_differ(packed):
    rows = packed.num_rows("train")
    _, content = read_by_ranks(packed, 1, 1, 0, 2 * rows)
    epochs = [[content[p] for p in range(e * rows, (e + 1) * rows)] for e in range(2)]
    stored = Counter(
        packed.table("train", range(rows))["doc_id"].combine_chunks().flatten().to_pylist()
    )
    for epoch in epochs:
        assert Counter(i for ids in epoch for i in ids) == stored
    assert epochs[0] != epochs[1]


def test_no_conversation_is_lost_and_none_is_in_both_splits(packed):
    train, test = documents(packed, "train"), documents(packed, "test")
    assert len(train) + len(test) == NUM_ROWS
    assert not set(train) & set(test)
    decode = tiny_tokenizer().decode
    texts = Counter(decode(ids) for ids, _, _ in [*train.values(), *test.values()])
    assert all(
        sum(f"question {i} 0<" in text for text in texts) == 1 for i in range(0, NUM_ROWS, 97)
    )
    answers = sum((1 + i % 40 + 1) * (1 + i % 3) for i in range(NUM_ROWS))
    learned = sum(sum(t) for _, _, t in [*train.values(), *test.values()])
    assert learned < answers  # three long answers do not fit 128 tokens
    counted = [packed.manifest["splits"][split]["targets"] for split in ("train", "test")]
    assert learned == sum(counted)


def test_bytes_do_not_depend_on_the_parallelism(ray_local, packed, tmp_path, model_path):
    source = spec_of(packed)
    with _tasks_at_a_time(ray_local, 1):
        again = prepare(*sections(tmp_path, source), model_path)
    names = sorted(p.relative_to(packed.path) for p in packed.path.rglob("*") if p.is_file())
    assert again.fingerprint == packed.fingerprint
    assert names == sorted(p.relative_to(again.path) for p in again.path.rglob("*") if p.is_file())
    assert all((packed.path / n).read_bytes() == (again.path / n).read_bytes() for n in names)


answers = st.lists(st.integers(1, 30), min_size=1, max_size=3)


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(answers, min_size=8, max_size=40),
    tasks=st.integers(1, 4),
    files=st.integers(1, 3),
    world=st.integers(1, 4),
    name=st.sampled_from(["mdlm", "bd3lm"]),
)
def test_every_target_is_read_once_per_epoch(
    ray_local, tmp_path_factory, model_path, rows, tasks, files, world, name
):
    """Whatever the documents, the files, the tasks at a time and the number of workers."""
    root = tmp_path_factory.mktemp("property")
    talks = [_talk(number, sizes) for number, sizes in enumerate(rows)]
    for file in range(files):
        write_jsonl(root / f"{file}.jsonl", talks[file::files])
    data, _ = sections(root, str(root), test_fraction=0, max_length=400, tokens_per_row=1600)
    with _tasks_at_a_time(ray_local, tasks):
        packed = prepare(data, ObjectiveSection(name=name, block_size=4, views=2), model_path)
    learned = sum(size + 1 for sizes in rows for size in sizes)  # an answer and its end of turn
    assert packed.manifest["splits"]["train"]["targets"] == learned
    stored = documents(packed, "train")
    assert sum(sum(flags) for _, _, flags in stored.values()) == learned
    total = packed.num_rows("train") // world * world
    _, content = read_by_ranks(packed, world, 1, 0, total) if total else (None, {})
    seen = Counter(chain.from_iterable(content.values()))
    assert set(seen.values()) <= {1} and set(seen) <= set(stored)
    assert len(content) == total


def _talk(number, sizes):
    turns = [
        [{"role": "user", "content": f"q{number}.{i}"}, {"role": "assistant", "content": "a" * n}]
        for i, n in enumerate(sizes)
    ]
    return {"messages": list(chain.from_iterable(turns))}


@contextlib.contextmanager
def _tasks_at_a_time(ray_local, tasks):
    options = ray_local.data.DataContext.get_current().execution_options
    before = options.resource_limits
    options.resource_limits = type(before)(cpu=tasks)
    try:
        yield
    finally:
        options.resource_limits = before


def test_every_kind_of_left_out_row_is_counted(ray_local, tmp_path, model_path):
    """Duplicates, contamination, other languages and a cap, in one run."""
    question = "how many minutes does it take the fog to cover the whole city today"
    held_out = write_jsonl(tmp_path / "eval.jsonl", [{"question": question, "answer": "42"}])
    fenced = [
        {"instruction": f"w{i}", "output": f"```{lang}\nx\n```"}
        for i, lang in enumerate(["python", "python", "python", "java"])
    ]
    rows = [*fenced, fenced[0], {"instruction": question, "output": "```python\n42\n```"}]
    spec = write_jsonl(tmp_path / "rows.jsonl", rows)
    data, objective = sections(
        tmp_path,
        f"{spec}[lang:python]",
        test_fraction=0,
        deduplicate=True,
        decontaminate=[held_out],
        max_rows=2,
    )
    packed = prepare(data, objective, model_path)
    train = packed.manifest["splits"]["train"]
    assert train["documents"] == 2
    (dropped,) = train["dropped"].values()
    assert dropped == {
        "duplicate of another row": 1,
        "overlaps data.decontaminate": 1,
        "beyond data.max_rows or data.max_tokens": 1,
    }
    (language,) = packed.manifest["languages"].values()
    assert language == {"language by fenced code": 6, "of another language": 1}


def test_a_set_for_a_sweep_is_shared_by_its_trials(ray_local, tmp_path, model_path):
    spec = write_jsonl(tmp_path / "rows.jsonl", [conversation(i) for i in range(60)])
    data, _ = sections(tmp_path, spec, max_block_size=16, max_views=2)
    trials = [(4, 1), (8, 2), (16, 2)]
    sets = {
        prepare(data, ObjectiveSection(name="bd3lm", block_size=b, views=v), model_path).fingerprint
        for b, v in trials
    }
    assert len(sets) == 1


def test_a_finished_set_is_reused_and_a_changed_option_makes_another(packed, model_path, caplog):
    root, source = packed.path.parents[1], spec_of(packed)
    with caplog.at_level("INFO"):
        again = prepare(*sections(root, source), model_path)
    assert again.path == packed.path and "reused" in caplog.text
    assert PackedSet.open(packed.path).manifest == packed.manifest
    with caplog.at_level("INFO"):
        other = prepare(*sections(root, source, max_length=64), model_path)
    assert other.fingerprint != packed.fingerprint and other.path.parent == packed.path.parent
    changes = "recipe.cutting.max_length: 128 -> 64; recipe.text_length: 100 -> 64"
    assert f"differs from {packed.fingerprint} in {changes}" in caplog.text


def test_a_set_belongs_to_the_code_of_its_adapters(
    packed, model_path, tmp_path, monkeypatch, caplog
):
    """Whoever changes what an adapter gives need not think of the sets that are there."""
    root, source = packed.path.parents[1], spec_of(packed)
    code = Path(roles.__file__).read_text()
    copy = tmp_path / "roles.py"
    monkeypatch.setattr(roles, "__file__", str(copy))
    rest = code.split('"""', 2)[2]
    copy.write_text(f'"""Other words."""\n# and a comment\n{rest}')
    assert prepare(*sections(root, source), model_path).path == packed.path
    assert '"human"' in code
    copy.write_text(code.replace('"human"', '"person"'))
    with caplog.at_level("INFO"):
        assert prepare(*sections(root, source), model_path).path != packed.path
    assert "row_code: " in caplog.text


def test_limits_take_that_many_rows_and_never_overlap(ray_local, tmp_path, model_path):
    spec = write_jsonl(tmp_path / "rows.jsonl", [conversation(i) for i in range(400)])
    both = prepare(*sections(tmp_path, f"{spec}[train:50,test:20]"), model_path)
    train, test = documents(both, "train"), documents(both, "test")
    assert (len(train), len(test)) == (50, 20)
    assert not {tuple(d[0]) for d in train.values()} & {tuple(d[0]) for d in test.values()}


def test_malformed_rows_are_counted_or_stop_the_job(ray_local, tmp_path, model_path):
    rows = [conversation(i) for i in range(90)]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    with path.open("a") as file:
        file.write('{"messages": [{"role": "wizard", "content": "x"}]}\n{"messages"\n')
    data, objective = sections(tmp_path, str(path), test_fraction=0)
    with pytest.raises(ValueError, match=r"2 malformed rows of 92(.|\n)*rows.jsonl:9[12]: "):
        prepare(data, objective, model_path)
    packed = prepare(data.model_copy(update={"max_bad_fraction": 0.1}), objective, model_path)
    dropped = packed.manifest["splits"]["train"]["dropped"]
    assert dropped == {str(path): {"unknown role 'wizard'": 1, "invalid JSON": 1}}
    assert [p.name for p in (tmp_path / "packed").iterdir()] == [packed.fingerprint]


def test_what_was_not_read_is_reported_and_options_make_another_set(
    ray_local, tmp_path, model_path, caplog
):
    (tmp_path / "set").mkdir()
    rows = [conversation(i) | {"title": "a"} for i in range(9)]
    write_jsonl(tmp_path / "set" / "rows.jsonl", rows)
    (tmp_path / "set" / "README.txt").write_text("About this.")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ date_string or '' }}" + tokenizer.chat_template
    model = save_tiny_ar(tmp_path / "model")
    tokenizer.save_pretrained(model)
    data, objective = sections(tmp_path, str(tmp_path / "set"), test_fraction=0)
    packed = prepare(data, objective, str(model))
    unread = packed.manifest["unread"]
    assert unread == {str(tmp_path / "set"): {"column title": 9, "file README.txt": 1}}
    assert "not read from" in caplog.text and "column title, 9 rows" in caplog.text
    console = Console(width=300, record=True)
    print_summary(packed.manifest, packed.path, console)
    assert "file README.txt" in console.export_text()
    dated = data.model_copy(update={"template_options": {"date_string": "1 Jan 2026"}})
    other = prepare(dated, objective, str(model))
    assert other.fingerprint != packed.fingerprint
    ids = next(iter(documents(other, "train").values()))[0]
    assert tiny_tokenizer().decode(ids).startswith("1 Jan 2026")
    with pytest.raises(ValueError, match=r"data\.template_options=.*holds 'day'"):
        prepare(data.model_copy(update={"template_options": {"day": "x"}}), objective, str(model))


def test_nothing_to_learn_is_an_error(ray_local, tmp_path, model_path):
    spec = write_jsonl(
        tmp_path / "rows.jsonl",
        [{"instruction": "x" * 200, "output": "y"}, {"instruction": "z" * 200, "output": "y"}],
    )
    with pytest.raises(ValueError, match="no room for the answer"):
        prepare(*sections(tmp_path, spec, test_fraction=0), model_path)


def test_mdlm_trains_each_answer_as_a_document(ray_local, tmp_path, model_path):
    spec = write_jsonl(tmp_path / "rows.jsonl", [conversation(i, turns=2) for i in range(20)])
    data, _ = sections(tmp_path, spec, test_fraction=0, eos_tail=8)
    packed = prepare(data, ObjectiveSection(name="mdlm"), model_path)
    found = documents(packed, "train").values()
    assert len(found) == 40
    for ids, segments, targets in found:
        learned = {s for s, t in zip(segments, targets, strict=True) if t}
        assert learned == {max(segments)} and targets[-1] and len(ids) <= 128


def test_plain_text_is_cut_without_loss(ray_local, tmp_path, model_path):
    texts = ["x" * 300, "y" * 64, "z" * 127]
    spec = write_jsonl(tmp_path / "rows.jsonl", [{"Text": text} for text in texts])
    data, objective = sections(tmp_path, spec, test_fraction=0, text_field="Text")
    packed = prepare(data, objective, model_path)
    split = packed.manifest["splits"]["train"]
    # 600 tokens over three streams hold two stretches of 100: they are cut so that rows are full.
    assert (split["documents"], split["targets"]) == (7, sum(map(len, texts)) + 3)
