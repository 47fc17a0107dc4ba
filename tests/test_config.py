"""Options that belong together are checked together, and the error says what to set."""

import pytest
from pydantic import ValidationError

from a2d_ray.config import DataSection, ObjectiveSection, check_lengths, check_targets

RECIPE = {
    "preset": "reference",
    "block_grid": "absolute",
    "noise": "bernoulli",
    "noise_per": "sequence",
    "norm": "token",
    "corruption_warmup": 0.0,
}


def test_reference_preset_names_everything_that_does_not_agree():
    ObjectiveSection(name="bd3lm", **RECIPE)
    with pytest.raises(ValidationError) as caught:
        ObjectiveSection(name="bd3lm", preset="reference", noise="bernoulli")
    for fix in ("noise_per=sequence", "norm=token", "block_grid=absolute", "corruption_warmup=0.0"):
        assert f"objective.{fix}" in str(caught.value)
    assert "objective.noise=" not in str(caught.value)


@pytest.mark.parametrize("name", ["mdlm", "bd3lm"])
def test_reference_preset_learns_the_last_turn_only(name):
    objective = ObjectiveSection(name=name, **RECIPE)
    check_targets(DataSection(spec="x.jsonl", targets="last", packing=False), objective)
    with pytest.raises(ValueError, match=r"data\.targets=last"):
        check_targets(DataSection(spec="x.jsonl", targets="all", packing=False), objective)


def test_block_sizes_divide_the_largest():
    assert ObjectiveSection(name="bd3lm", block_size=[4, 16, 8]).block_sizes == (4, 8, 16)
    with pytest.raises(ValidationError, match="6 must divide the largest, 16"):
        ObjectiveSection(name="bd3lm", block_size=[6, 16])
    with pytest.raises(ValidationError, match="a list of such sizes"):
        ObjectiveSection(name="bd3lm", block_size=[])
    with pytest.raises(ValueError, match=r"multiple of objective\.block_size \(16\)"):
        check_lengths(
            DataSection(spec="x.jsonl", max_length=120),
            ObjectiveSection(name="bd3lm", block_size=[4, 16]),
        )


def test_an_ar_loss_needs_a_causal_clean_stream():
    with pytest.raises(ValidationError, match=r"objective\.clean_attention=causal"):
        ObjectiveSection(name="bd3lm", ar_loss_weight=0.1)
    ObjectiveSection(name="bd3lm", ar_loss_weight=0.1, clean_attention="causal")


def test_right_shift_needs_another_grid_than_segment():
    with pytest.raises(ValidationError, match=r"objective\.block_grid=absolute"):
        ObjectiveSection(name="bd3lm", right_shift_logits=True)
    ObjectiveSection(name="mdlm", right_shift_logits=True)
