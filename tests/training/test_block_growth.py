"""Block sizes that join one after the other."""

import pytest

from a2d_ray.training.optim import open_block_sizes

SIZES = (4, 8, 16, 32)


def test_the_smallest_begins_and_all_are_open_at_the_end_of_the_growth():
    opened = [open_block_sizes(step, 100, SIZES, 0.4) for step in range(100)]
    assert opened[0] == (4,) and opened[39] == SIZES and opened[40:] == [SIZES] * 60
    assert [len(sizes) for sizes in opened] == sorted(len(sizes) for sizes in opened)
    assert [opened.count(SIZES[:n]) for n in (1, 2, 3)] == [10, 10, 10]


@pytest.mark.parametrize("sizes", [SIZES, (32,)])
def test_without_growth_all_are_open(sizes):
    assert open_block_sizes(0, 100, sizes, 0.0) == sizes


def test_growth_needs_a_list(make_config):
    with pytest.raises(ValueError, match=r"block_growth=0.5 has no effect .* set a list"):
        make_config(objective={"block_size": 8, "block_growth": 0.5})


@pytest.mark.cluster
def test_a_run_that_grows_begins_with_the_smallest_blocks(make_config, one_worker):
    """One step each of the first and the last size, as the bare loop builds them."""
    from a2d_ray.data.pipeline import prepare
    from benchmarks.bare_training import BareLoop

    losses = {}
    for name, objective in {
        "small": {"block_size": 4},
        "growing": {"block_size": [4, 8], "block_growth": 1.0},
        "all": {"block_size": [4, 8]},
    }.items():
        config = make_config(name, objective={"name": "bd3lm", "views": 2} | objective)
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"max_block_size": 8})}
        )
        packed = prepare(config.data, config.objective, config.model.path)
        losses[name] = BareLoop.of(config, str(packed.path), 0).step(0, 0, 2)[0]
    assert losses["growing"] == pytest.approx(losses["small"], rel=1e-5)
    assert losses["all"] != pytest.approx(losses["small"], rel=1e-3)
