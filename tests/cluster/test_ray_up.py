"""`ray up` files against Ray's own schema, and what they must say."""

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.files import RAY_UP, read

CLOUDS = RAY_UP[:2]


@pytest.fixture(params=RAY_UP, ids=lambda path: path.stem)
def config(request):
    return read(request.param)


def test_ray_s_own_schema(config):
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] >= 2 and prepared["head_node_type"]


def test_a_typo_is_found():
    config = read(RAY_UP[0]) | {"max_wokers": 3}
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(config))


def test_nothing_of_ray_s_default_set_up_is_left(config):
    prepared = prepare_config(config)
    commands = [*prepared["setup_commands"], *prepared["head_setup_commands"]]
    assert not any("pip install" in command for command in commands)


def test_every_node_authenticates_and_exports_metrics(config):
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, start = config[key]
        assert stop == "ray stop"
        assert "RAY_AUTH_MODE=token ray start" in start and "--metrics-export-port=8080" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert list(config["file_mounts"]) == ["/home/ray/.ray/auth_token"]
    assert "-v /shared:/shared" in config["docker"]["run_options"]


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_clouds_shut_down_by_themselves(path):
    config = read(path)
    assert 0 < config["idle_timeout_minutes"] <= 15
    gpu = config["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0 and gpu["max_workers"] == config["max_workers"] == 8
    assert gpu["resources"]["GPU"] == 8
    assert config["provider"]["cache_stopped_nodes"] is False
    assert "shutdown -h" in path.read_text() or "maxRunDuration" in path.read_text()
