"""Plans: which documents are packed, in what order; the same whatever order they come in."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.data.hashing import scramble, stable_id
from a2d_ray.data.packing.planning import (
    DUPLICATE,
    HELD_OUT,
    OVER_LIMIT,
    Index,
    IndexLimits,
    make_plan,
    split_index,
)
from a2d_ray.data.packing.tokenizing import INDEX_SCHEMA


def entry(number, **columns):
    """A document of a row of its own."""
    row = stable_id("row", str(number))
    return {
        **{"file": "f", "place": number, "is_test": False, "source": 0, "row": row},
        **{"content": number, "copies": 1, "doc_id": stable_id(str(row)), "cost": 10},
        **{"tokens": 5, "targets": 3},
        **columns,
    }


def index_of(entries):
    return Index.of([pa.Table.from_pylist(entries, schema=INDEX_SCHEMA)])


def places(index):
    return sorted(index["place"].tolist())


def test_training_rows_that_equal_a_held_out_row_are_dropped():
    entries = [entry(0), entry(1, content=7), entry(2, content=7, is_test=True)]
    train, test, dropped = split_index(index_of(entries), IndexLimits())
    assert (places(train), places(test)) == ([0], [2])
    assert dropped == {(0, HELD_OUT): 1}


def test_of_equal_rows_the_first_source_s_is_kept_with_all_its_documents():
    entries = [
        entry(0, source=1, content=7),
        entry(1, source=0, content=7),
        entry(2, source=0, content=7, row=entry(1)["row"], doc_id=22),
        entry(3, source=1, content=8),
    ]
    train, _, dropped = split_index(index_of(entries), IndexLimits(deduplicate=True))
    assert places(train) == [1, 2, 3] and dropped == {(1, DUPLICATE): 1}
    assert places(split_index(index_of(entries), IndexLimits())[0]) == [0, 1, 2, 3]


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_a_cap_takes_the_same_rows_whatever_order_they_come_in(random, most):
    entries = [entry(i, source=i % 3) for i in range(40)]
    shuffled = random.sample(entries, len(entries))
    limits = IndexLimits(max_rows=most)
    train, _, dropped = split_index(index_of(entries), limits)
    again, _, _ = split_index(index_of(shuffled), limits)
    assert places(train) == places(again) and len(places(train)) == most
    assert sum(dropped.values()) == 40 - most and {r for _, r in dropped} == {OVER_LIMIT}


def test_a_cap_of_tokens_counts_every_copy():
    entries = [entry(i, tokens=10, copies=2) for i in range(10)]
    train, _, _ = split_index(index_of(entries), IndexLimits(max_tokens=65))
    assert train["tokens"].size == 3


def test_weights_repeat_documents_under_ids_of_their_own():
    entries = [entry(i, copies=1 + i % 3) for i in range(300)]
    plan = make_plan(index_of(entries), capacity=40, seed=0)
    times = Counter(plan.index["place"].tolist())
    assert times == {i: 1 + i % 3 for i in range(300)}
    ids = plan.index["doc_id"]
    assert np.unique(ids).size == ids.size == 600 and (ids >= 0).all()
    assert {e["doc_id"] for e in entries} <= set(ids.tolist())


@given(st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_or_the_files_of_the_index(random):
    entries = [entry(i, cost=1 + i * 7 % 30, copies=1 + i % 2) for i in range(100)]
    moved = [{**e, "file": f"{random.randrange(5)}"} for e in random.sample(entries, len(entries))]
    one, two = (make_plan(index_of(rows), capacity=64, seed=3) for rows in (entries, moved))
    assert np.array_equal(one.index["doc_id"], two.index["doc_id"])
    assert np.array_equal(one.docs_per_pack, two.docs_per_pack)


def test_packs_mix_the_sources_from_the_first_to_the_last():
    entries = [entry(i, source=i // 2000) for i in range(8000)]  # one source after the other
    plan = make_plan(index_of(entries), capacity=80, seed=0)
    source = plan.index["source"]
    for part in np.array_split(source, 40):
        shares = np.bincount(part, minlength=4) / part.size
        assert shares.min() > 0.12
    in_pack = np.split(source, np.cumsum(plan.docs_per_pack)[:-1])
    assert np.mean([np.unique(pack).size for pack in in_pack]) > 3


def test_parts_hold_the_packs_in_order():
    plan = make_plan(index_of([entry(i) for i in range(100)]), capacity=30, seed=0)
    parts = plan.parts(10)
    assert [len(part["docs_per_pack"][0]) for part in parts] == [10, 10, 10, 4]
    flat = [i for part in parts for i in part["doc_id"][0].as_py()]
    assert flat == plan.index["doc_id"].tolist()


def test_without_packing_a_row_is_a_document():
    plan = make_plan(index_of([entry(i) for i in range(9)]), 1000, 0, is_packed=False)
    assert plan.docs_per_pack.tolist() == [1] * 9


@pytest.mark.parametrize("seed", [0, 1])
def test_scramble_is_a_bijection(seed):
    values = scramble(np.arange(100_000), seed)
    assert np.unique(values).size == values.size
    assert abs(values.astype(np.float64).mean() / 2**63 - 1) < 0.01
