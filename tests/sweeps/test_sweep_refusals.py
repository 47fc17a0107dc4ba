"""A sweep that cannot run says so before Ray starts, and leaves its name free."""

import json

import pytest

from a2d_ray.cli import parse_config
from a2d_ray.config import SweepConfig
from a2d_ray.sweeps.sweep import run_sweep

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def config(make_config, tmp_path):
    """Makes a sweep's configuration."""
    train = json.loads(make_config("base").model_dump_json())
    space = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
    sweep = {"name": "tiny", "storage_path": str(tmp_path)}

    def make(*args):
        values = (f"train={json.dumps(train)}", f"space={json.dumps(space)}",
                  *(f"sweep.{k}={v}" for k, v in sweep.items()))  # fmt: skip
        return parse_config(SweepConfig, "sweep", [*values, *args])

    return make


def test_a_base_that_cannot_run_is_named_by_its_key_and_leaves_the_name_free(config, tmp_path):
    for _ in range(2):  # the second time as the first
        with pytest.raises(
            ValueError, match=r"^train\.model\.path=/nowhere cannot .* does not exist"
        ):
            run_sweep(config("train.model.path=/nowhere"))
    assert not (tmp_path / "tiny" / "sweep.yaml").exists()


def test_where_a_sweep_cannot_lie(config, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", "s3://bucket/sweeps"):
        with pytest.raises(ValueError, match=rf"^sweep\.storage_path={path} (is not|must be)"):
            run_sweep(config(f"sweep.storage_path={path}"))
