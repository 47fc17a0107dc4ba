"""The `deepspeed:` section is read by DeepSpeed itself, before Ray starts."""

import pytest

from a2d_ray.config import ConfigError, OptionError, TrainConfig
from a2d_ray.config.layers import validate
from a2d_ray.training.deepspeed_options import check_deepspeed


def config_with(**deepspeed):
    values = {
        "run": {"name": "x"},
        "model": {"path": "m"},
        "data": {"spec": "d"},
        "objective": {"name": "bd3lm", "block_size": 4},
        "deepspeed": deepspeed,
    }
    return validate(TrainConfig, values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"zero_optimization": True}, r"deepspeed\.zero_optimization=true must be a mapping"),
        ({"fp16": "auto"}, r"deepspeed\.fp16=auto must be a mapping"),
        ({"zero_optimization": {"stage": "2"}}, r"stage=2 is a text: .*without quotes"),
        ({"zero_optimization": {"stage": True}}, r"stage=true does not exist"),
        (
            {"zero_optimisation": {"stage": 2}},
            r"deepspeed\.zero_optimisation=.*unknown.*did you mean deepspeed\.zero_optimization",
        ),
        ({"wall_clock": True}, r"deepspeed\.wall_clock=true is unknown"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}},
            r"deepspeed\.zero_optimization\.reduce_bucket_size=0 .*greater than",
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 5}},
            r"zero_optimization\.reduce_bucket_sise=5 is unknown: did you mean reduce_bucket_size",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "moon"}}},
            r"deepspeed\.zero_optimization\.offload_optimizer\.device=moon",
        ),
        ({"communication_data_type": "fp7"}, r"deepspeed\.communication_data_type=fp7"),
    ],
)
def test_what_deepspeed_would_refuse_or_overlook_is_an_error(given, message):
    with pytest.raises((OptionError, ConfigError), match=message):
        check_deepspeed(config_with(**given))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"wall_clock_breakdown": True},
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
        {"zero_optimization": {"stage": 1}, "communication_data_type": "fp32"},
        {"comms_logger": {"enabled": True}, "flops_profiler": {"enabled": False}},
    ],
)
def test_what_deepspeed_knows_passes(given):
    check_deepspeed(config_with(**given))


@pytest.mark.parametrize(("rows_per_device", "is_refused"), [(2, True), (4, False), (None, False)])
def test_stage_1_overlaps_only_a_step_of_one_micro_batch(rows_per_device, is_refused):
    """DeepSpeed 0.19 loses the gradients of the others; two gloo ranks showed it."""
    config = config_with(zero_optimization={"stage": 1, "overlap_comm": True})
    batch = config.batch.model_copy(update={"rows": 4, "rows_per_device": rows_per_device})
    config = config.model_copy(update={"batch": batch})
    if is_refused:
        with pytest.raises(OptionError, match=r"overlap_comm=true loses gradients.*stage 2"):
            check_deepspeed(config)
    else:
        check_deepspeed(config)
