"""Rows -> documents -> packs without Ray: nothing is lost, split, or counted twice."""

import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.data.chat import ChatRenderer, encode_pieces
from a2d_ray.data.documents import Cutting
from a2d_ray.data.packed import PACKED_SCHEMA, to_packed_rows
from a2d_ray.data.packing import STATS_KEY, pack_window
from a2d_ray.data.reading import ROWS_SCHEMA
from a2d_ray.data.tokenizing import NOT_PACKABLE, Recipe, tokenize_rows
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def rows_table(payloads):
    rows = [
        {"source": 0, "where": f"rows:{i}", "row_key": f"key{i}", "payload": json.dumps(p)}
        for i, p in enumerate(payloads)
    ]
    return pa.Table.from_pylist([{**row, "reason": None} for row in rows], schema=ROWS_SCHEMA)


def recipe(objective="bd3lm", *, views=2, max_length=150, tokens_per_row=700, eos_tail=0):
    return Recipe(
        cutting=Cutting(max_length=max_length, edge=4, is_split=objective == "mdlm"),
        layout=LayoutSpec(objective=objective, block_size=4, views=views, eos_id=2),
        eos_tail=eos_tail,
        tokens_per_row=tokens_per_row,
        insert_eos=True,
        seed=0,
    )


def packs_of(payloads, how):
    """Packed rows and counts of one window."""
    documents = tokenize_rows(rows_table(payloads), TOKENIZER, how)
    packs = pack_window(documents, how.tokens_per_row, how.seed)
    is_stats = pa.compute.equal(packs["key"], STATS_KEY)
    (stats,) = packs.filter(is_stats)["stats"].to_pylist()
    table = packs.filter(pa.compute.invert(is_stats)).select(PACKED_SCHEMA.names[1:])
    return to_packed_rows(table), json.loads(stats)


turns = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)
payloads = st.lists(turns, min_size=1, max_size=20).map(
    lambda rows: [
        [m for q, a in row for m in (["user", f"{i}" * q], ["assistant", "a" * a])]
        for i, row in enumerate(rows)
    ]
)


@given(rows=payloads, objective=st.sampled_from(["bd3lm", "mdlm"]), views=st.integers(1, 2))
def test_packs_hold_every_target_once_and_fit_when_laid_out(rows, objective, views):
    how = recipe(objective, views=views, max_length=400, tokens_per_row=1600)
    packed, stats = packs_of(rows, how)
    targets = Counter()
    for row in packed:
        layout = build_layout([row], how.layout)
        assert layout.ids_RT.shape[1] <= how.tokens_per_row
        for doc in range(row.doc_id_D.numel()):
            is_here = row.doc_C == doc
            ids, flags = row.ids_C[is_here], row.is_target_C[is_here]
            targets[tuple(ids.tolist()), tuple(flags.tolist())] += 1
    assert targets == Counter(_oracle(rows, is_split=objective == "mdlm"))
    learned = sum(sum(flags) * n for (_, flags), n in targets.items())
    assert stats["sources"]["0"]["targets"] == learned
    assert stats["sources"]["0"]["rows"] == len(rows)


def _oracle(rows, is_split):
    """(ids, is_target) of every document, straight from the segments."""
    for row in rows:
        messages = [{"role": role, "content": content} for role, content in row]
        pieces = ChatRenderer(TOKENIZER).render(messages)
        segments = encode_pieces(pieces, TOKENIZER)
        ends = range(2, len(segments) + 1, 2) if is_split else [len(segments)]
        for end in ends:
            learned = {end - 1} if is_split else set(range(1, end, 2))
            ids = tuple(i for segment in segments[:end] for i in segment)
            yield ids, tuple(n in learned for n, s in enumerate(segments[:end]) for _ in s)


@given(rows=payloads)
def test_costs_are_the_tokens_of_the_layout(rows):
    packed, stats = packs_of(rows, recipe(max_length=400, tokens_per_row=1600))
    laid_out = sum(int((build_layout([r], recipe().layout).doc_RT >= 0).sum()) for r in packed)
    assert stats["cost"] == laid_out


def test_counts_tell_dropped_documents_from_malformed_rows():
    rows = rows_table(
        [[["user", "q"], ["assistant", "a"]], [["user", "q" * 200], ["assistant", "a"]]]
    )
    bad = {"source": 0, "where": "rows:9", "row_key": "k", "payload": "", "reason": "no messages"}
    table = pa.concat_tables([rows, pa.Table.from_pylist([bad], schema=ROWS_SCHEMA)])
    packs = pack_window(tokenize_rows(table, TOKENIZER, recipe()), 700, 0)
    stats = json.loads(packs["stats"][0].as_py())
    assert stats["sources"]["0"]["rows"] == 3
    assert stats["sources"]["0"]["documents"] == 1
    assert stats["sources"]["0"]["malformed"] == 1
    assert stats["dropped"]["0"] == {
        "no messages": 1,
        "no room for the answer in data.max_length": 1,
    }
    assert stats["offenders"] == [["rows:9", "no messages"]]


def test_a_document_that_no_pack_holds_is_dropped_with_a_reason():
    rows = [[["user", "q"], ["assistant", "a" * 100]]]
    packed, stats = packs_of(rows, recipe(tokens_per_row=200))
    assert packed == [] and stats["dropped"]["0"] == {NOT_PACKABLE: 1}


def test_document_ids_depend_on_the_row_and_the_answer_only():
    rows = [[["user", "q"], ["assistant", "a"]], [["user", "r"], ["assistant", "b"]]]
    ids = [
        tokenize_rows(table, TOKENIZER, recipe(objective, eos_tail=3))["doc_id"].to_pylist()
        for table in (rows_table(rows), rows_table(rows).slice(1))
        for objective in ("bd3lm", "mdlm")
    ]
    assert ids[0] == ids[1] and ids[2] == ids[0][1:] == ids[3]
    assert all(0 <= i < 2**63 for i in ids[0])


def test_a_refused_conversation_is_a_malformed_row(monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role + m.content }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    table = rows_table([[["user", "bad"], ["assistant", "a"]], [["user", "q"], ["assistant", "a"]]])
    documents = tokenize_rows(table, tokenizer, recipe())
    assert documents["is_malformed"].to_pylist() == [True, False]
    assert documents["reason"].to_pylist()[0] == "the chat template refuses these messages: no"


@pytest.mark.parametrize("size", [1, 149, 150, 151, 400])
def test_text_rows_keep_every_token(size):
    packed, _ = packs_of(["x" * size], recipe())
    assert sum(row.ids_C.numel() for row in packed) == size + 1
    assert all(row.is_target_C.all() for row in packed)
