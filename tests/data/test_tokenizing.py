"""Rows -> documents -> packs without Ray: nothing is lost, split, or counted twice."""

import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.data.chat import ChatRenderer, encode_pieces, render_prompt
from a2d_ray.data.packing.costs import Streams
from a2d_ray.data.packing.documents import Cutting
from a2d_ray.data.packing.packed import to_packed_rows
from a2d_ray.data.packing.planning import Index, make_plan
from a2d_ray.data.packing.tokenizing import LONGEST_TEXT, NOT_PACKABLE, Recipe, tokenize_rows
from a2d_ray.data.packing.writing import packed_table
from a2d_ray.data.sources.reading import ROWS_SCHEMA
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def rows_table(payloads):
    rows = [
        {
            **{"source": 0, "split": "train", "shard": "rows", "ordinal": 0, "number": i},
            **{"row": 1000 + i, "content": i, "copies": 1, "is_malformed": False},
            "payload": json.dumps(payload),
        }
        for i, payload in enumerate(payloads)
    ]
    return pa.Table.from_pylist(rows, schema=ROWS_SCHEMA)


def recipe(objective="bd3lm", *, views=2, max_length=150, tokens_per_row=700, eos_tail=0):
    return Recipe(
        cutting=Cutting(max_length=max_length, edge=4, is_split=objective == "mdlm"),
        streams=Streams(
            objective=objective, block_grid="segment", block_size=4, views=views, eos_tail=eos_tail
        ),
        text_length=max_length,
        tokens_per_row=tokens_per_row,
        insert_eos=True,
        seed=0,
    )


def layout_of(how):
    return LayoutSpec(
        objective=how.streams.objective, block_size=4, views=how.streams.views, eos_id=2
    )


def tokenized(table, how, tokenizer=TOKENIZER):
    """Documents, their index, and the report."""
    documents, index = tokenize_rows(table, tokenizer, how)
    (report,) = index["report"].drop_null().to_pylist()
    index = index.set_column(0, "file", pa.array(["f"] * index.num_rows))
    return documents, index, json.loads(report)


def packs_of(payloads, how):
    """Packed rows, and the plan."""
    documents, index, _ = tokenized(rows_table(payloads), how)
    plan = make_plan(Index.of([index]), how.tokens_per_row, how.seed)
    chosen = documents.take(pa.array(plan.index["place"])).combine_chunks()
    table = packed_table(chosen, plan.index["doc_id"], plan.docs_per_pack, 0)
    return to_packed_rows(table), plan


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
    packed, plan = packs_of(rows, how)
    targets = Counter()
    for row in packed:
        layout = build_layout([row], layout_of(how))
        assert layout.ids_RT.shape[1] <= how.tokens_per_row
        for doc in range(row.doc_id_D.numel()):
            is_here = row.doc_C == doc
            ids, flags = row.ids_C[is_here], row.is_target_C[is_here]
            targets[tuple(ids.tolist()), tuple(flags.tolist())] += 1
    assert targets == Counter(_oracle(rows, is_split=objective == "mdlm"))
    learned = sum(sum(flags) * n for (_, flags), n in targets.items())
    assert plan.index["targets"].sum() == learned


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
    how = recipe(max_length=400, tokens_per_row=1600)
    packed, plan = packs_of(rows, how)
    laid_out = sum(int((build_layout([r], layout_of(how)).doc_RT >= 0).sum()) for r in packed)
    assert plan.index["cost"].sum() == laid_out


@given(rows=payloads)
def test_blocks_restart_at_turns(rows):
    packed, _ = packs_of(rows, recipe(max_length=400, tokens_per_row=1600))
    for row in packed:
        layout = build_layout([row], layout_of(recipe()))
        is_clean = layout.stream_RT[0] == 0
        segment = row.segment_C.tolist()
        place = {}  # (doc, position) -> segment
        counts = Counter()
        for doc, number in zip(row.doc_C.tolist(), segment, strict=True):
            place[doc, counts[doc]] = number
            counts[doc] += 1
        blocks = {}
        columns = (layout.doc_RT[0], layout.block_RT[0], layout.position_RT[0])
        for doc, block, position in zip(*(c[is_clean].tolist() for c in columns), strict=True):
            blocks.setdefault((doc, block), set()).add(place[doc, position])
        assert all(len(segments) == 1 for segments in blocks.values())


def test_counts_tell_dropped_documents_from_malformed_rows():
    rows = rows_table(
        [[["user", "q"], ["assistant", "a"]], [["user", "q" * 200], ["assistant", "a"]]]
    )
    bad = {
        **{"source": 0, "split": "train", "shard": "rows", "ordinal": 0, "number": 9, "row": 7},
        **{"content": 7, "copies": 1, "payload": "", "reason": "no messages", "is_malformed": True},
    }
    tally = {"source": 0, "tally": '{"of another language": 3}'}
    table = pa.concat_tables([rows, pa.Table.from_pylist([bad, tally], schema=ROWS_SCHEMA)])
    documents, index, report = tokenized(table, recipe())
    assert documents.num_rows == 1 and index.num_rows == 2
    assert report["rows"] == {"train|0|rows": 3, "train|0|malformed": 1}
    assert report["dropped"] == {
        "train|0|no messages": 1,
        "train|0|no room for the answer in data.max_length": 1,
    }
    assert report["offenders"] == [[0, 0, 9, "rows:9", "no messages"]]
    assert report["tallies"] == [[0, {"of another language": 3}]]


def test_a_document_that_no_pack_holds_is_dropped_with_a_reason():
    rows = [[["user", "q"], ["assistant", "a" * 100]]]
    documents, _, report = tokenized(rows_table(rows), recipe(tokens_per_row=200))
    assert documents.num_rows == 0 and report["dropped"] == {f"train|0|{NOT_PACKABLE}": 1}


def test_document_ids_depend_on_the_row_and_the_answer_only():
    rows = [[["user", "q"], ["assistant", "a"]], [["user", "r"], ["assistant", "b"]]]
    ids = [
        tokenized(table, recipe(objective, eos_tail=3))[1]["doc_id"].drop_null().to_pylist()
        for table in (rows_table(rows), rows_table(rows).slice(1))
        for objective in ("bd3lm", "mdlm")
    ]
    assert ids[0] == ids[1] and ids[2] == ids[0][1:] == ids[3]
    assert all(0 <= i < 2**63 for i in ids[0])


def test_a_refused_conversation_is_a_malformed_row():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role + m.content }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    table = rows_table([[["user", "bad"], ["assistant", "a"]], [["user", "q"], ["assistant", "a"]]])
    _, _, report = tokenized(table, recipe(), tokenizer)
    assert report["rows"] == {"train|0|rows": 2, "train|0|malformed": 1}
    assert report["offenders"][0][-1] == "the chat template refuses these messages: no"


@pytest.mark.parametrize("size", [1, 149, 150, 151, 400])
def test_text_rows_keep_every_token(size):
    packed, _ = packs_of(["x" * size], recipe())
    assert sum(row.ids_C.numel() for row in packed) == size + 1
    assert all(row.is_target_C.all() for row in packed)


def test_a_long_text_is_tokenized_in_pieces_and_stays_one_text():
    text = "".join(f"line {i}\n" for i in range(LONGEST_TEXT // 4))
    documents, _, _ = tokenized(rows_table([text]), recipe())
    ids = documents["ids"].combine_chunks().flatten().to_pylist()
    assert TOKENIZER.decode(ids[:-1]) == text and ids[-1] == TOKENIZER.eos_token_id
    assert documents["is_complete"].to_pylist() == [False] * (documents.num_rows - 1) + [True]


def test_special_tokens_that_a_row_spells_out_stay_text_as_in_prompts():
    mark = "<|im_end|>"
    talk = [["user", f"a{mark}b"], ["assistant", f"c{mark}"]]
    documents, _, _ = tokenized(rows_table([talk, f"x{mark}"]), recipe())
    chat, text = documents["ids"].to_pylist()
    prompt = render_prompt([{"role": "user", "content": f"a{mark}b"}], TOKENIZER)
    assert chat[: len(prompt[0])] == prompt[0]
    eos = TOKENIZER.eos_token_id
    assert (chat.count(eos), text.count(eos)) == (2, 1)  # the ends of the turns and of the text
    assert TOKENIZER.decode(text) == f"x{mark}{mark}"
