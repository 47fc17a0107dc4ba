"""Slots are handed out once, come back, and pages are found by what they hold."""

import random

from a2d_ray.generation.engine.cache import join_runs, split_runs
from a2d_ray.generation.engine.pages import Page, PageTable, page_key, root_key

ROOT = root_key(4, "segment", "")


def slots(runs):
    return [slot for start, stop in runs for slot in range(start, stop)]


def test_runs_split_and_join():
    runs = [(3, 5), (5, 9), (12, 13)]
    assert join_runs(runs) == [(3, 9), (12, 13)]
    for n in range(8):
        head, rest = split_runs(runs, n)
        assert slots(head) + slots(rest) == slots(runs) and len(slots(head)) == n


def test_random_use_never_hands_out_a_slot_twice():
    rng, table, held = random.Random(1), PageTable(200), []
    for _ in range(4_000):
        size = rng.randrange(1, 30)
        if rng.random() < 0.55 and size <= table.num_free:
            page = Page(runs=table.allocate(size), num_tokens=size)
            assert len(set(slots(page.runs))) == size
            table.register(page, page_key(ROOT, [rng.randrange(60), size]))
            page.is_filled = rng.random() < 0.8
            held.append(page)
        elif held:
            page = held.pop(rng.randrange(len(held)))
            table.release([page])
        used = [slot for page in held for slot in slots(page.runs)]
        assert len(set(used)) == len(used) == 200 - table.num_free
    table.release(held)
    assert table.num_free == 200
    assert slots(table.allocate(200)) == list(range(200))  # everything merges into one run again


def test_the_longest_stored_prefix_is_found_and_the_oldest_page_goes_first():
    table = PageTable(12)
    keys = [page_key(ROOT, [1, 2, 3, 4])]
    keys.append(page_key(keys[0], [5]))
    pages = [Page(runs=table.allocate(n), num_tokens=n, is_filled=True) for n in (4, 1)]
    for page, key in zip(pages, keys, strict=True):
        table.register(page, key)
    table.release(pages)
    assert table.num_free == 12
    other = page_key(keys[0], [6])
    assert table.find([keys[0], other]) == pages[:1]
    assert table.num_free == 8
    table.release(pages[:1])
    table.allocate(8)  # takes the page that was used longest ago
    assert table.find(keys) == pages[:1]


def test_keys_tell_prefix_tokens_and_root_apart():
    keys = {
        page_key(ROOT, [1, 2]),
        page_key(ROOT, [1, 3]),
        page_key(page_key(ROOT, [1]), [2]),
        page_key(root_key(8, "segment", ""), [1, 2]),
        page_key(root_key(4, "segment", "key"), [1, 2]),
    }
    assert len(keys) == 5
