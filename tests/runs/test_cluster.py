"""A Ray of our own: what its workers see, and that nothing of it stays."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from a2d_ray.runs.environment import set_environment, worker_env
from tests.test_imports import PLACES

ROOT = Path(__file__).parent.parent.parent
OURS = {"ray.init", "ray.cluster_resources", "ray.available_resources"}


def test_ray_is_started_and_counted_in_one_room():
    for place, path in PLACES.items():
        found = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Attribute)}  # fmt: skip
        assert place.startswith("runs/") or not found & OURS, place


def test_the_users_own_variables_win(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE"})
    set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == worker_env()["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ.items() >= {"GOMP_SPINCOUNT": "0", "RAY_worker_niceness": "0"}.items()
    assert worker_env(3) == worker_env() | {"OMP_NUM_THREADS": "3"}


def test_a_joined_cluster_keeps_its_own_settings(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "10.0.0.1:6379"})
    set_environment()
    assert not [name for name in os.environ if name.startswith("RAY_") and name != "RAY_ADDRESS"]


SCRIPT = """
import json, os, psutil
from a2d_ray.runs.cluster import running_ray, start_ray

os.environ["RAY_API_SERVER_ADDRESS"] = "http://somewhere.else:1"
with running_ray(3, object_store_bytes=100 * 2**20, is_quiet=True):
    import ray
    from ray.util.state import list_nodes

    def look():
        nodes = list_nodes(timeout=60)  # as Ray Train's guard of a run does
        return os.nice(0), os.environ["OMP_WAIT_POLICY"], [node.node_id for node in nodes]

    assert not start_ray()  # it runs
    nice, wait_policy, seen = ray.get(ray.remote(look).remote())
    said = {"nice": nice, "wait_policy": wait_policy, "cpus": ray.cluster_resources()["CPU"],
            "finds_itself": seen == [node["NodeID"] for node in ray.nodes()]}
said |= {"api": os.environ["RAY_API_SERVER_ADDRESS"], "runs": ray.is_initialized(),
         "left": len(psutil.Process().children(recursive=True))}
print(json.dumps(said))
"""


@pytest.mark.own_cluster
@pytest.mark.slow
def test_a_private_ray_is_found_by_its_workers_and_leaves_nothing():
    environ = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "nice": os.nice(0),
        "wait_policy": "PASSIVE",
        "cpus": 3.0,
        "finds_itself": True,
        "api": "http://somewhere.else:1",
        "runs": False,
        "left": 0,
    }
