"""Which replica a request goes to: the conversation's own, unless it has too much to do."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.serving.openai.chat_protocol import ChatCompletionRequest
from a2d_ray.serving.openai.infill import InfillRequest
from a2d_ray.serving.openai.protocol import CompletionRequest
from a2d_ray.serving.ray.conversations import by_bounded_load, conversation_key

LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=9)


def bound(loads: list[int]) -> int:
    return math.ceil(1.25 * (sum(loads) + 1) / len(loads)) + 2


@given(LOADS)
def test_replicas_with_room_come_first_and_each_group_keeps_its_order(loads):
    order = by_bounded_load(loads)
    assert sorted(order) == list(range(len(loads)))
    assert loads[order[0]] < bound(loads)  # there always is one
    has_room = [loads[index] < bound(loads) for index in order]
    assert has_room == sorted(has_room, reverse=True)
    for (a, b), (is_first, is_second) in zip(pairwise(order), pairwise(has_room), strict=True):
        assert a < b or is_first > is_second


@pytest.mark.parametrize("num_replicas", [2, 3, 8])
def test_one_hot_beginning_is_spread_within_the_bound(num_replicas):
    """200 requests of one key, of which up to 64 are under way at a time."""
    loads, under_way, draw = [0] * num_replicas, [], random.Random(0)
    for _ in range(200):
        if len(under_way) == 64:
            loads[under_way.pop(draw.randrange(64))] -= 1
        before = list(loads)
        replica = by_bounded_load(loads)[0]
        loads[replica] += 1
        under_way.append(replica)
        assert loads[replica] <= bound(before)
    assert max(loads) <= math.ceil(1.25 * 64 / num_replicas) + 2
    assert sum(load > 0 for load in loads) >= num_replicas / 1.25 - 1


@given(LOADS)
def test_the_few_requests_of_one_conversation_stay_where_they_are(others):
    """Whatever other replicas do, three requests at a time never leave their own."""
    assert all(by_bounded_load([own, *others])[0] == 0 for own in range(3))


def key(request_class=ChatCompletionRequest, *, salt: str = "", **fields) -> str:
    request = request_class.model_validate({"model": "tiny", **fields})
    return conversation_key(request, salt)


def test_turns_share_a_key_and_conversations_do_not():
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    more = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert key(messages=first) == key(messages=first + more)
    assert key(messages=first) != key(messages=[first[0], more[1]])
    assert key(messages=first) != key(messages=first, salt="other")
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    assert key(messages=first, **thinking) == key(messages=first + more, **thinking)
    assert key(messages=first, **thinking) != key(messages=first)
    text = "x" * 512
    assert key(CompletionRequest, prompt=text) == key(CompletionRequest, prompt=text + "y")
    assert key(InfillRequest, prefix=text) == key(InfillRequest, prefix=text + "y", suffix="z")
    assert key(InfillRequest, prefix="a") != key(InfillRequest, prefix="b")


def test_a_prompt_cache_key_replaces_the_beginning():
    a, b = ([{"role": "user", "content": text}] for text in "ab")
    assert key(messages=a, prompt_cache_key="k") == key(messages=b, prompt_cache_key="k")
    assert key(messages=a, prompt_cache_key="k") != key(messages=a, prompt_cache_key="l")
    assert key(messages=a, prompt_cache_key="k") != key(messages=a)
    assert key(messages=a, prompt_cache_key="k") != key(messages=a, prompt_cache_key="k", salt="s")
