"""A cluster of several nodes on one machine, one of which dies: run as a process of its own.

    python -m tests.cluster.nodes CONFIG.yaml

CONFIG describes a run of two workers with `schedule.save_steps`. First a mixture is packed. The run
is trained once undisturbed
(as NAME) and once while the node of a worker is killed and another one joins (as NAME-killed).
Then the trained checkpoint is served by two replicas, and the node of one is killed under load.
Prints one line of JSON.
"""

import http.client
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks

from a2d_ray.config import ServeConfig, TrainConfig

WORKER_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def main() -> None:
    values = yaml.safe_load(Path(sys.argv[1]).read_text())
    # The head has no CPU for tasks, so it outlives whoever is killed.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True},
    )
    nodes = [cluster.add_node(**WORKER_NODE) for _ in range(3)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    said: dict[str, Any] = {}
    try:
        said["data_nodes"] = pack(values)
        checkpoint, said["worker_nodes"] = train(values, "whole")
        said |= train_with_a_death(values, cluster, nodes)
        said |= serve_with_a_death(checkpoint, cluster, nodes, int(sys.argv[2]))
    finally:
        print(json.dumps(said), flush=True)
        ray.shutdown()
        cluster.shutdown()


def pack(values: dict[str, Any]) -> int:
    """Packs a mixture of several sources; returns on how many nodes tasks of Ray Data ran."""
    from a2d_ray.data.pipeline import prepare

    kinds = ("sums", "sorting", "spelling")
    spec = "+".join(f"embedded/{kind}[train:200,test:20]" for kind in kinds)
    config = TrainConfig.model_validate(values | {"data": values["data"] | {"spec": spec}})
    prepare(config.data, config.objective, config.model.path)
    # State arrives at the dashboard a moment later.
    deadline, nodes = time.monotonic() + 30, set()
    while len(nodes) < 2 and time.monotonic() < deadline:
        tasks = list_tasks(filters=[("type", "=", "NORMAL_TASK")], limit=1000)
        nodes = {t.node_id for t in tasks if t.state == "FINISHED" and "MapBatches" in t.name}
        time.sleep(0.5)
    return len(nodes)


def train(values: dict[str, Any], name: str) -> tuple[str, int]:
    """Fits the run; returns its checkpoint and on how many nodes its workers were."""
    from a2d_ray.training import build_trainer

    values = values | {"run": values["run"] | {"name": name}}
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            seen.update(worker_nodes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = build_trainer(TrainConfig.model_validate(values)).fit()
    finally:
        done.set()
        watcher.join()
    return result.checkpoint.path, len(seen)


def worker_nodes() -> list[str]:
    """Ids of the nodes on which training workers live now."""
    actors = list_actors(filters=[("state", "=", "ALIVE"), ("class_name", "=", "RayTrainWorker")])
    return [actor.node_id for actor in actors]


def train_with_a_death(values: dict[str, Any], cluster: Cluster, nodes: list) -> dict[str, Any]:
    """Kills a worker's node behind the first checkpoint; another one joins."""
    run = Path(values["run"]["storage_path"]) / "killed"
    thread = threading.Thread(target=train, args=(values, "killed"))
    thread.start()
    snapshot = run / "checkpoint_manager_snapshot.json"
    while not (snapshot.exists() and "checkpoint_0" in snapshot.read_text()):
        time.sleep(0.05)
    victim = next(n for n in nodes if n.node_id in worker_nodes())
    started = time.monotonic()
    cluster.remove_node(victim, allow_graceful=False)
    nodes.remove(victim)
    nodes.append(cluster.add_node(**WORKER_NODE))
    thread.join()
    return {"seconds_from_death_to_end": time.monotonic() - started}


def serve_with_a_death(checkpoint: str, cluster: Cluster, nodes: list, port: int) -> dict[str, Any]:
    """Kills the node of a replica while clients ask; says how the answers went."""
    from ray import serve

    from a2d_ray.serving import build_openai_app

    config = ServeConfig.model_validate(
        {
            "models": [{"id": "tiny", "load": {"path": checkpoint, "dtype": "float32"}}],
            "num_replicas": 2, "cpus_per_replica": 0.6, "port": port,
        }
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app(config), name="a2d-ray", route_prefix="/")
    before = replica_nodes()
    counts = {"before": [0, 0], "after": [0, 0]}
    ask(port, counts["before"], 8)
    replacement = cluster.add_node(**WORKER_NODE)
    victim = next(n for n in nodes if n.node_id in before)
    cluster.remove_node(victim, allow_graceful=False)
    nodes.remove(victim)
    nodes.append(replacement)
    during = [0, 0]
    deadline = time.monotonic() + 60
    while len(set(replica_nodes()) - {victim.node_id}) < 2 and time.monotonic() < deadline:
        ask(port, during, 1)
    ask(port, counts["after"], 8)
    after = replica_nodes()
    serve.shutdown()
    return {"replica_nodes": len(set(before)), "replica_nodes_after": len(set(after)),
            "during": during, **counts}  # fmt: skip


def replica_nodes() -> list[str]:
    """Ids of the nodes on which replicas of the model live now."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return [a.node_id for a in actors if "ServeReplica" in a.class_name and "tiny" in a.class_name]


def ask(port: int, counts: list[int], times: int) -> None:
    """Asks the endpoint; counts answers and refusals."""
    body = json.dumps({"model": "tiny", "prompt": "say 5", "max_tokens": 4}).encode()
    for _ in range(times):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                counts[0] += response.status == 200
        except (OSError, http.client.HTTPException):  # the dead node's proxy listened here too
            counts[1] += 1


if __name__ == "__main__":
    main()
