"""What goes on goes on as it was, or the first difference is named."""

import pytest

from a2d_ray.config.errors import OptionError
from a2d_ray.runs.settings import check_same_settings, first_difference


def test_the_first_difference_is_a_dotted_key():
    ours = {"optim": {"lr": 1.0, "betas": [0.9, 0.98]}, "lora": {"r": 4}}
    assert first_difference(ours, ours) is None
    theirs = {"optim": {"lr": 1.0, "betas": [0.9, 0.95]}, "lora": None}
    assert first_difference(ours, theirs) == ("optim.betas", [0.9, 0.98], [0.9, 0.95])
    theirs["optim"] = ours["optim"]
    assert first_difference(ours, theirs) == ("lora", {"r": 4}, None)
    assert first_difference({}, {"new": 1}) == ("new", None, 1)


def test_the_error_names_what_goes_on_and_both_values():
    with pytest.raises(OptionError) as refused:
        check_same_settings(
            {"optim": {"lr": 0.1}}, {"optim": {"lr": 0.2}}, field="run.name", value="mine"
        )
    assert str(refused.value) == (
        "run.name=mine was started with optim.lr=0.2, not 0.1: "
        "resume it as it was, or choose another run.name"
    )
    assert (refused.value.field, refused.value.value) == ("run.name", "mine")


def test_settings_are_the_same_after_they_were_written():
    """A tuple comes back as a list."""
    check_same_settings({"betas": (0.9, 0.98)}, {"betas": [0.9, 0.98]}, field="f", value="v")


def test_long_values_are_cut():
    with pytest.raises(OptionError) as refused:
        check_same_settings({"a": "x" * 1000}, {"a": list(range(999))}, field="f", value="v")
    assert len(str(refused.value)) < 300
