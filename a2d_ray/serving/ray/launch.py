"""Starts the Serve application of a configuration and stops what it started."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from a2d_ray.config import ServeConfig
from a2d_ray.config.commands import command_of
from a2d_ray.http.access import ApiKeys, open_to_all
from a2d_ray.http.request_ids import SERVE_CALLBACK, SERVE_VARIABLE
from a2d_ray.models.checkpoint import check_checkpoint
from a2d_ray.runs.cluster import running_ray
from a2d_ray.runs.resources import Resources, Share, available_resources, check_room
from a2d_ray.serving.ray.placement import replica_gpus
from a2d_ray.signals import handling

QUICKSTART_CHECKPOINT = "runs/quickstart/train/checkpoint-final"
_FALLBACK_SOURCE = "package:smollm2"
_FALLBACK_OUTPUT = "models/a2d/SmolLM2-135M-Instruct"
_APPLICATION = "a2d-ray"


def check_before_start(config: ServeConfig) -> None:
    """Finds what would fail, in a moment and without Ray.

    Raises:
        ValueError: a model or keys that are missing or not usable, or a busy port.
    """
    ApiKeys.read(config.security)
    for model in config.models:
        overrides = model.load.model_dump(exclude_none=True, exclude={"path", "device", "dtype"})
        contract = check_checkpoint(model.load.path, **overrides)
        if contract.objective is None and contract.ar_mode is None:
            raise ValueError(
                f"{model.load.path} is converted but not trained, so its objective is unknown: "
                f"train it, convert it again (its AR mode can be served then), or set the "
                f"load.objective of model {model.id!r} to bd3lm (or mdlm)"
            )
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {config.host}:{config.port} ({error.strerror}): stop what uses "
                f"it, or choose another with port=..."
            ) from None


def with_fallback(config: ServeConfig, say: Callable[[str], object]) -> ServeConfig:
    """The configuration, with a freshly converted model where the quickstart's is to be served but
    was never made.

    Args:
        config: other missing paths stay as they are: they are errors.
        say: takes a line for the user.
    """
    wanted = [m for m in config.models if m.load.path == QUICKSTART_CHECKPOINT]
    if not wanted or Path(QUICKSTART_CHECKPOINT).exists():
        return config
    say(
        f"{QUICKSTART_CHECKPOINT} is not there ({command_of('quickstart')} trains it): serving "
        f"{_FALLBACK_SOURCE}, converted but not trained: it answers as the AR model that it was "
        "converted from, one token per forward."
    )
    if not Path(_FALLBACK_OUTPUT).exists():
        from a2d_ray import convert

        convert(_FALLBACK_SOURCE, _FALLBACK_OUTPUT)
    values = {"path": _FALLBACK_OUTPUT}
    models = [
        m.model_copy(update={"load": m.load.model_copy(update=values)}) if m in wanted else m
        for m in config.models
    ]
    return config.model_copy(update={"models": models})


@contextmanager
def running_server(config: ServeConfig) -> Iterator[str]:
    """Serves the models inside a ``with`` block; yields the base URL for OpenAI clients.

    Starts Ray and Serve where they do not run yet and shuts down only what it started.

    Raises:
        ValueError: see `check_before_start`; or too few CPUs or GPUs, or a Serve that listens
            elsewhere.
    """
    check_before_start(config)
    os.environ.setdefault(SERVE_VARIABLE, SERVE_CALLBACK)
    with running_ray(shows_workers=False):
        from ray import serve

        if serve.status().proxies:
            raise ValueError(
                "Ray Serve already runs in this cluster and keeps its port: add an application to "
                "it with `serve run` or `serve deploy` and a2d_ray.serving:build_openai_app"
            )
        check_replicas(config, available_resources())
        yield from _serve(config)


def exposure_warning(config: ServeConfig) -> str | None:
    """A warning about an address that others reach without a key; None where there is none."""
    if config.host in ("127.0.0.1", "::1", "localhost") or ApiKeys.read(config.security).digests:
        return None
    return open_to_all(config.security, f"{config.host}:{config.port}")


def curl_line(base_url: str, config: ServeConfig) -> str:
    """A command that asks the server a question."""
    question = [{"role": "user", "content": "What is 12 + 30?"}]
    body = json.dumps({"model": config.models[0].id, "messages": question})
    headers = ["Content-Type: application/json"]
    if ApiKeys.read(config.security).digests:
        headers.append("Authorization: Bearer KEY")  # terminals and logs keep what is printed
    options = " ".join(f"-H '{header}'" for header in headers)
    return f"curl {base_url}/chat/completions {options} -d '{body}'"


def wait_for_interrupt(announce: Callable[[], object]) -> None:
    """Returns when the user or the system asks this process to end (SIGINT, SIGTERM).

    Args:
        announce: tells the user; a request that comes as soon as it is read is noted.
    """
    is_asked = False

    def note() -> None:
        nonlocal is_asked
        is_asked = True

    with handling(signal.SIGINT, note), handling(signal.SIGTERM, note):
        announce()
        while not is_asked:
            time.sleep(0.2)


def _serve(config: ServeConfig) -> Iterator[str]:
    from ray import serve

    from a2d_ray.serving.ray.deployment import bind_openai_app

    keys = ApiKeys.read(config.security)
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(bind_openai_app(config, keys), name=_APPLICATION, route_prefix="/")
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
        yield f"http://{host}:{config.port}/v1"
    finally:
        serve.shutdown()


def check_replicas(config: ServeConfig, there: Resources) -> None:
    """Returns if there is room for the replicas, rather than let them wait for ever.

    Raises:
        OptionError: how many CPUs or GPUs are needed, and how many there are.
    """
    field = "num_replicas"
    count = config.num_replicas
    if config.autoscaling is not None:
        field = "autoscaling.min_replicas"
        count = config.autoscaling.min_replicas
    num_models = len(config.models)  # each has its replicas
    check_room(
        there,
        field,
        count,
        cpus=Share(num_models * config.cpus_per_replica, "cpus_per_replica"),
        gpus=Share(num_models * replica_gpus(config, there), "gpus_per_replica"),
    )
