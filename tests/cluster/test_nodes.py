"""Several nodes on one machine: a node dies, another joins, nothing is lost."""

import json
import socket
import subprocess
import sys

import pytest

from a2d_ray.cli import to_yaml
from tests.cluster.files import ROOT
from tests.training.runs import assert_same_losses, metrics

pytestmark = [
    pytest.mark.own_cluster,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def said(workshop, make_config, tmp_path_factory):
    """What tests/cluster/nodes.py found."""
    config = make_config(
        "nodes",
        schedule={"max_steps": 8, "eval_steps": 4, "save_steps": 2, "eval_samples": 0},
        scaling={"num_workers": 2, "max_failures": 3},
    )
    file = tmp_path_factory.mktemp("nodes") / "config.yaml"
    file.write_text(to_yaml(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.nodes", str(file), str(port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_mixture_is_packed_on_several_nodes(said):
    assert said["data_nodes"] >= 2


def test_workers_of_a_run_are_on_two_nodes(said):
    assert said["worker_nodes"] == 2


def test_a_killed_node_changes_no_loss(said, workshop):
    whole, evaluations = metrics(workshop, "whole")
    killed, again = metrics(workshop, "killed")
    assert [x["step"] for x in whole] == list(range(1, 9))
    assert_same_losses(killed, whole, rel=1e-5)
    nelbo = [x["eval/nelbo"] for x in evaluations]
    assert [x["eval/nelbo"] for x in again] == pytest.approx(nelbo, rel=1e-5)


def test_replicas_are_spread_and_come_back(said):
    assert said["replica_nodes"] == 2 and said["replica_nodes_after"] == 2
    assert said["before"] == [8, 0] and said["after"] == [8, 0]
