"""Faults in the replicas of a model under Serve: functions that run in their processes."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util import list_named_actors

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas know no tests


def in_replicas(act: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of ``act(actor, *args)`` in every replica of the model ``tiny``."""
    named = list_named_actors(all_namespaces=True)
    names = [each["name"] for each in named if "#model-0-tiny#" in each["name"]]
    actors = [ray.get_actor(name, namespace="serve") for name in names]
    return ray.get([actor.__ray_call__.remote(act, *args) for actor in actors], timeout=30)


def _server(actor: Any) -> Any:
    """The `ModelServer` behind Serve's actor."""
    return actor._replica_impl._user_callable_wrapper.user_callable._server


def break_engine(actor: Any, pid: int, hangs: bool) -> None:
    """From the next round on, the engine of one process raises, or hangs."""

    def step() -> None:
        if hangs:
            time.sleep(600)
        raise RuntimeError("out of luck")

    if os.getpid() == pid:
        _server(actor)._engine._engine.step = step


def spoil_generate(actor: Any) -> None:
    """The server raises, and counts how often."""
    server = _server(actor)
    server.num_calls = 0

    async def generate(*args: Any) -> Any:
        server.num_calls += 1
        raise TypeError("a defect")
        yield

    server.generate = generate


def mend_generate(actor: Any) -> int:
    """The inverse of `spoil_generate`; how often it was called."""
    server = _server(actor)
    del server.generate
    return server.num_calls
