"""The Ray Serve application: one deployment per model, one ingress before them."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from a2d_ray.config import ServeConfig, ServedModel
from a2d_ray.http.access import ApiKeys, open_to_all
from a2d_ray.runs.environment import worker_env
from a2d_ray.runs.resources import available_resources
from a2d_ray.runs.storage import absolute_if_local
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.openai.pieces import Server
from a2d_ray.serving.ray.health import DeploymentHealth
from a2d_ray.serving.ray.placement import replica_gpus
from a2d_ray.serving.ray.remote import RemoteServer
from a2d_ray.serving.ray.replica import SERVE_LOGGER, ModelReplica, log_through_serve

_HEALTH_CHECK_PERIOD_S = 2.0
# The models push back, not the ingress: before a full one requests wait for seconds to be told. Yet
# each holds its body, so there is an end.
_INGRESS_REQUESTS = 1_024
_ROUTER = "a2d_ray.serving.ray.routing.BoundedHashRouter"
_MAX_FALLBACKS = 1000  # a conversation's replica that is full hands on to any other


def build_openai_app(config: ServeConfig) -> serve.Application:
    """The Serve application of a configuration.

    Args:
        config: what ``args:`` holds in Serve's YAML. `host` and `port` are not used here: Serve's
            own ``http_options`` decide.

    Raises:
        ValueError: keys that are required or cannot be read.
    """
    config = ServeConfig.model_validate(config)
    keys = ApiKeys.read(config.security)
    if not keys.digests:
        SERVE_LOGGER.warning(open_to_all(config.security, "Serve's HTTP port"))
    return bind_openai_app(config, keys)


def bind_openai_app(config: ServeConfig, keys: ApiKeys) -> serve.Application:
    """The same, with keys that were read."""
    replicas = {
        model.id: _model_deployment(f"model-{index}-{_slug(model.id)}", config).bind(
            _with_absolute_path(model).model_dump(), config.model_dump()
        )
        for index, model in enumerate(config.models)
    }
    ingress = serve.deployment(
        name="ingress",
        max_ongoing_requests=max(_INGRESS_REQUESTS, 2 * len(config.models) * _max_requests(config)),
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        ray_actor_options={"num_cpus": 0},
    )(Ingress)
    return ingress.bind(replicas, config.model_dump(), keys)


@serve.ingress()
class Ingress:
    """The HTTP application before the models' deployments.

    Args:
        replicas: handle of each model's deployment, by the id that clients use.
        config: the `ServeConfig` as plain values.
        keys: that callers need.
    """

    def __init__(
        self, replicas: Mapping[str, DeploymentHandle], config: dict[str, Any], keys: ApiKeys
    ) -> None:
        log_through_serve()
        self._replicas = replicas
        self._keys = keys
        self._config = ServeConfig.model_validate(config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        config = self._config
        scaling = config.autoscaling
        health = DeploymentHealth(scales_to_zero=scaling is not None and scaling.min_replicas == 0)
        servers: dict[str, Server] = {
            model: RemoteServer(
                handle,
                is_prefix_aware=config.is_prefix_aware,
                max_requests=_max_requests(config),
                health=health,
                name=model,
            )
            for model, handle in self._replicas.items()
        }
        return create_app(
            servers,
            keys=self._keys,
            requests_per_minute=self._config.security.requests_per_minute,
            limits=self._config.limits,
            adds_request_id=False,  # Serve's proxies do
            defaults={model.id: model.sampling for model in self._config.models},
        )


def _max_requests(config: ServeConfig) -> int:
    """Requests for one model that its replicas run and let wait."""
    scaling = config.autoscaling
    most_replicas = config.num_replicas if scaling is None else scaling.max_replicas
    return most_replicas * config.max_ongoing_requests + config.max_queued_requests


def _model_deployment(name: str, config: ServeConfig) -> serve.Deployment:
    size: dict[str, Any] = {"num_replicas": config.num_replicas}
    if config.autoscaling is not None:
        size = {"autoscaling_config": config.autoscaling.model_dump()}
    if config.is_prefix_aware:
        size["request_router_config"] = {
            "request_router_class": _ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": _MAX_FALLBACKS},
        }
    return serve.deployment(
        name=name,
        **size,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": replica_gpus(config, available_resources()),
            "runtime_env": {"env_vars": worker_env()},
        },
    )(ModelReplica)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _with_absolute_path(model: ServedModel) -> ServedModel:
    load = model.load.model_copy(update={"path": absolute_if_local(model.load.path)})
    return model.model_copy(update={"load": load})
