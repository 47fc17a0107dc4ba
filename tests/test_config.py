"""Options that belong together are checked together, and the error says what to set."""

import pytest
from pydantic import ValidationError

from a2d_ray.config import (
    DataSection,
    ObjectiveSection,
    OptionError,
    TrainConfig,
    check_lengths,
    check_targets,
)

RECIPE = {
    "preset": "reference",
    "noise": "bernoulli",
    "noise_per": "sequence",
    "norm": "token",
    "corruption_warmup": 0.0,
}


def recipe(name):
    """The objective of the public recipe; MDLM has no grid."""
    return ObjectiveSection(name=name, **RECIPE, **grid_of(name))


def grid_of(name):
    return {"block_grid": "absolute"} if name == "bd3lm" else {}


def test_reference_preset_names_everything_that_does_not_agree():
    recipe("bd3lm")
    with pytest.raises(ValidationError) as caught:
        ObjectiveSection(name="bd3lm", preset="reference", noise="bernoulli")
    for fix in ("noise_per=sequence", "norm=token", "block_grid=absolute", "corruption_warmup=0.0"):
        assert f"objective.{fix}" in str(caught.value)
    assert "objective.noise=" not in str(caught.value)


@pytest.mark.parametrize("name", ["mdlm", "bd3lm"])
def test_reference_preset_learns_the_last_turn_only(name):
    check_targets(DataSection(spec="x.jsonl", targets="last", packing=False), recipe(name))
    with pytest.raises(OptionError, match=r"objective.preset=reference needs data\.targets=last"):
        check_targets(DataSection(spec="x.jsonl", targets="all", packing=False), recipe(name))


def test_block_sizes_divide_the_largest():
    assert ObjectiveSection(name="bd3lm", block_size=[4, 16, 8]).block_sizes == (4, 8, 16)
    with pytest.raises(ValidationError, match="6 must divide the largest, 16"):
        ObjectiveSection(name="bd3lm", block_size=[6, 16])
    with pytest.raises(ValidationError, match="or a list of them"):
        ObjectiveSection(name="bd3lm", block_size=[])
    with pytest.raises(ValueError, match=r"multiple of objective\.block_size=16"):
        check_lengths(
            DataSection(spec="x.jsonl", max_length=120),
            ObjectiveSection(name="bd3lm", block_size=[4, 16]),
        )


def test_an_ar_loss_needs_a_causal_clean_stream():
    with pytest.raises(ValidationError, match=r"objective\.clean_attention=causal"):
        ObjectiveSection(name="bd3lm", ar_loss_weight=0.1)
    ObjectiveSection(name="bd3lm", ar_loss_weight=0.1, clean_attention="causal")


@pytest.mark.parametrize("options", [{"name": "mdlm"}, {"name": "bd3lm", "views": 2}])
def test_full_noise_needs_blocks_and_one_view(options):
    with pytest.raises(ValidationError, match=r"noise=full needs objective\.(name=bd3lm|views=1)"):
        ObjectiveSection(noise="full", **options)
    assert ObjectiveSection(name="bd3lm", noise="full", full_share=0.8).full_share == 0.8
    with pytest.raises(ValidationError, match=r"full_share=0.5 has no effect with noise=exact"):
        ObjectiveSection(name="bd3lm", full_share=0.5)


def test_right_shift_needs_another_grid_than_segment():
    with pytest.raises(ValidationError, match=r"objective\.block_grid=absolute"):
        ObjectiveSection(name="bd3lm", right_shift_logits=True)
    ObjectiveSection(name="mdlm", right_shift_logits=True)


def test_mdlm_has_one_block_size_that_of_sampling():
    assert ObjectiveSection(name="mdlm", block_size=8).largest_block == 8
    with pytest.raises(ValidationError, match="is a list, but mdlm has no blocks"):
        ObjectiveSection(name="mdlm", block_size=[4, 8])


def test_an_option_with_its_default_is_never_without_effect():
    """So a complete dump loads again, whatever the other options are."""
    whole = ObjectiveSection(name="mdlm").model_dump()
    assert ObjectiveSection(**whole) == ObjectiveSection(name="mdlm")
    with pytest.raises(ValidationError, match=r"clean_attention=causal has no effect with name="):
        ObjectiveSection(**whole | {"clean_attention": "causal"})


def test_conditions_reach_over_sections():
    values = {
        "run": {"name": "x"},
        "model": {"path": "m"},
        "data": {"spec": "x.jsonl", "eos_tail": 3},
        "objective": {"name": "mdlm"},
    }
    assert TrainConfig.model_validate(values).data.eos_tail == 3
    with pytest.raises(ValidationError, match=r"data\.eos_tail=3 .* objective\.name=bd3lm"):
        TrainConfig.model_validate(values | {"objective": {"name": "bd3lm"}})


def test_the_recipe_s_rows_leave_no_room_for_a_tail():
    data = DataSection(spec="x.jsonl", max_length=64, tokens_per_row=64, packing=False)
    check_lengths(data, recipe("mdlm"))
    with pytest.raises(OptionError, match="raise it to 80"):
        check_lengths(data, ObjectiveSection(name="mdlm"))
