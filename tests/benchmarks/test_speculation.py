"""The suite `speculation` on a tiny checkpoint: all ways to decode give the AR mode's answers."""

import json

import pytest

from a2d_ray import convert
from a2d_ray.config import BenchmarkConfig
from benchmarks import speculation
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished quickstart, as far as the suite reads it."""
    root = tmp_path_factory.mktemp("quickstart")
    checkpoint = root / "train" / "checkpoint-final"
    convert(str(save_tiny_ar(root / "ar")), checkpoint)
    values = json.loads((checkpoint / "config.json").read_text())
    values["a2d"] |= {"objective": "bd3lm", "block_size": 4, "clean_attention": "causal"}
    (checkpoint / "config.json").write_text(json.dumps(values))
    return root


def measured(root, case):
    config = BenchmarkConfig(suite="speculation", quick=True, cases=[case], root=str(root))
    return list(speculation.run(config))


def test_one_client_gets_equal_answers_by_every_way(root):
    cases = measured(root, "records")
    assert [case.name for case in cases] == [
        f"records_{rule}" for rule in ("generate", "ar", "threshold")
    ]
    for case in cases:
        equal = case.facts["equal_to_ar"]
        assert equal["generate"] == equal["speculate"] == 1 > equal["threshold"]
        per_forward = case.facts["tokens_per_forward"]
        assert per_forward["ar"] == per_forward["generate"] == 1 <= per_forward["speculate"]


def test_several_clients_get_as_many_tokens(root):
    (case,) = measured(root, "clients2")
    assert case.facts["equal_length"] and case.facts["num_tasks"] == 4


def test_json_answers_are_equal_and_valid_where_they_end(root):
    (case,) = measured(root, "json")
    assert case.facts["equal_to_ar"] == 1


def test_a_root_without_a_quickstart_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished quickstart: run `make quickstart`"):
        measured(tmp_path, "json")
