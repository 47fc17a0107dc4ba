"""Rewards by hand."""

import json

import pytest

from a2d_ray.config import RewardSection
from a2d_ray.rl.rewards import make_reward

SCHEMA = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
TESTS = "assert double(2) == 4\nassert double(-1) == -2"


@pytest.mark.parametrize(
    ("section", "answer", "reference", "wanted"),
    [
        ({}, " 7 \n", "7", 1),
        ({}, "7.", "7", 0),
        ({}, "7", 7, 1),
        ({"kind": "regex", "pattern": r"\d+ apples"}, "I see 12 apples", None, 1),
        ({"kind": "regex", "pattern": r"\d+ apples"}, "I see apples", None, 0),
        ({"kind": "regex", "pattern": r"####\s*(\S+)"}, "3, no: #### 4 #### 5", "#### 5", 1),
        ({"kind": "regex", "pattern": r"####\s*(\S+)"}, "#### 5", "5", 1),
        ({"kind": "regex", "pattern": r"####\s*(\S+)"}, "5", "5", 0),
        ({"kind": "json_schema", "json_schema": SCHEMA}, '{"age": 3}', None, 1),
        ({"kind": "json_schema", "json_schema": SCHEMA}, '{"age": "3"}', None, 0),
        ({"kind": "json_schema", "json_schema": SCHEMA}, "age: 3", None, 0),
        ({"kind": "json_schema"}, '{"age": 3}', SCHEMA, 1),
        ({"kind": "json_schema"}, "[]", json.dumps(SCHEMA), 0),
        ({"kind": "function", "function": "tests.rl.judges:share_of_small"}, "aaza", None, 0.75),
    ],
)
def test_rewards_by_hand(section, answer, reference, wanted):
    assert make_reward(RewardSection(**section))(answer, reference) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("def double(x):\n    return 2 * x", 1),
        ("Here it is:\n```python\ndef double(x):\n    return x + x\n```\nDone.", 1),
        ("def double(x):\n    return x * x", 0),
        ("import sys; sys.exit(0)", 0),
        ("while True: pass", 0),
    ],
)
def test_code_is_judged_by_the_rows_tests(answer, wanted):
    section = RewardSection(kind="unit_tests", timeout=3)
    assert make_reward(section)(answer, TESTS) == wanted


def test_a_function_that_is_not_there():
    with pytest.raises(ValueError, match=r"rl\.reward\.function=tests\.rl\.judges:nobody"):
        make_reward(RewardSection(kind="function", function="tests.rl.judges:nobody"))
