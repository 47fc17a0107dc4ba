"""The Ray Serve application: one deployment per model, one ingress before them."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from a2d_ray.config import ServeConfig, ServedModel
from a2d_ray.serving.app import create_app
from a2d_ray.serving.errors import RequestError, not_ready, overloaded
from a2d_ray.serving.pieces import Piece, Server
from a2d_ray.serving.protocol import GenerationRequest

_HEALTH_CHECK_PERIOD_S = 2.0


def build_openai_app(config: ServeConfig) -> serve.Application:
    """The Serve application of a configuration.

    Args:
        config: what ``args:`` holds in Serve's YAML. `host` and `port` are not used here: Serve's
            own ``http_options`` decide.
    """
    config = ServeConfig.model_validate(config)
    replicas = {
        model.id: _model_deployment(f"model-{index}-{_slug(model.id)}", config).bind(
            _with_absolute_path(model).model_dump(), max(1, round(config.cpus_per_replica))
        )
        for index, model in enumerate(config.models)
    }
    # The models push back, not the ingress: it must have room for what runs and waits in all.
    per_model = config.num_replicas * config.max_ongoing_requests + config.max_queued_requests
    ingress = serve.deployment(
        name="ingress",
        max_ongoing_requests=2 * len(config.models) * per_model,
        ray_actor_options={"num_cpus": 0},
    )(Ingress)
    return ingress.bind(replicas)


class ModelReplica:
    """A model in a process of its own.

    Args:
        model: a `ServedModel` as plain values.
        num_threads: torch threads.
    """

    def __init__(self, model: dict[str, Any], num_threads: int) -> None:
        import torch

        from a2d_ray.api import load
        from a2d_ray.serving.server import ModelServer

        torch.set_num_threads(num_threads)
        served = ServedModel.model_validate(model)
        self._server = ModelServer(
            load(**served.load.model_dump(exclude_none=True)), served.sampling
        )

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[Piece | RequestError, None]:
        """The pieces of an answer; a refusal is the last item: it is no failure of the replica."""
        try:
            async for piece in self._server.generate(request):
                yield piece
        except RequestError as error:
            yield error

    async def check_health(self) -> None:
        """Raises if the engine died, so that Serve replaces this replica."""
        await self._server.check_health()


@serve.ingress()
class Ingress:
    """The HTTP application before the models' deployments.

    Args:
        replicas: handle of each model's deployment, by the id that clients use.
    """

    def __init__(self, replicas: Mapping[str, DeploymentHandle]) -> None:
        self._replicas = replicas

    def __serve_build_asgi_app__(self) -> FastAPI:
        servers: dict[str, Server] = {
            model: RemoteServer(handle) for model, handle in self._replicas.items()
        }
        return create_app(servers)


class RemoteServer:
    """A `Server` whose model lives in a Serve deployment.

    Args:
        handle: the deployment of `ModelReplica`s.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yields the pieces; closing the generator cancels the request in the replica.

        Raises:
            RequestError: the replica's refusal, 429 if too many wait, 503 if it is gone.
        """
        response = cast(
            DeploymentResponseGenerator,
            self._handle.options(stream=True).generate.remote(request),
        )
        try:
            async for item in response:
                if isinstance(item, RequestError):
                    raise item
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise
        except BackPressureError as error:
            raise overloaded("too many requests wait already: try again later") from error
        except (RayActorError, RayTaskError, RayServeException) as error:
            raise not_ready(f"the model's replica failed: {type(error).__name__}") from error

    async def check_health(self) -> None:
        """Returns if a replica of the model runs, as Serve knows it.

        Raises:
            RequestError: 503.
        """
        application = serve.get_replica_context().app_name
        name = self._handle.deployment_name
        status = await asyncio.to_thread(serve.status)
        deployment = status.applications[application].deployments[name]
        if not any(n for state, n in deployment.replica_states.items() if state == "RUNNING"):
            raise not_ready(f"{name} is {deployment.status}: {deployment.message}")


def _model_deployment(name: str, config: ServeConfig) -> serve.Deployment:
    return serve.deployment(
        name=name,
        num_replicas=config.num_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica,
            # Threads that wait must not burn the cores that others share with them.
            "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        },
    )(ModelReplica)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _with_absolute_path(model: ServedModel) -> ServedModel:
    """Replicas work in another directory; what is no local path is a Hub id."""
    path = Path(model.load.path).expanduser()
    if not path.exists():
        return model
    return model.model_copy(
        update={"load": model.load.model_copy(update={"path": str(path.resolve())})}
    )
