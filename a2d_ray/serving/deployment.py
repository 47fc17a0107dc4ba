"""The Ray Serve application: one deployment per model, one ingress before them."""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from a2d_ray.config import ServeConfig, ServedModel
from a2d_ray.http.access import ApiKeys, open_to_all
from a2d_ray.http.errors import ENGINE_DEAD, RequestError, internal_error, not_ready
from a2d_ray.serving.admission import Admission
from a2d_ray.serving.app import create_app
from a2d_ray.serving.conversations import conversation_key
from a2d_ray.serving.health import DeploymentHealth
from a2d_ray.serving.metrics import EndpointMetrics
from a2d_ray.serving.pieces import ModelFacts, Piece, Server
from a2d_ray.serving.protocol import GenerationRequest
from a2d_ray.serving.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens

logger = logging.getLogger(__name__)
serve_logger = logging.getLogger("ray.serve")

_HEALTH_CHECK_PERIOD_S = 2.0
_METRICS_TIMEOUT_S = 5.0
_FACTS_TIMEOUT_S = 2.0
_FACTS_PERIOD_S = 10.0
# The models push back, not the ingress: before a full one requests wait for seconds to be told. Yet
# each holds its body, so there is an end.
_INGRESS_REQUESTS = 1_024
_MAX_ATTEMPTS = 3
_RETRY_DELAY_S = 0.2
_ROUTER = "a2d_ray.serving.routing.BoundedHashRouter"
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
        serve_logger.warning(open_to_all(config.security, "Serve's HTTP port"))
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


class ModelReplica:
    """A model in a process of its own.

    Args:
        model: a `ServedModel` as plain values.
        config: the `ServeConfig` as plain values.
    """

    def __init__(self, model: dict[str, Any], config: dict[str, Any]) -> None:
        import torch

        from a2d_ray.api import load
        from a2d_ray.serving.server import ModelServer

        _log_through_serve()
        served, common = ServedModel.model_validate(model), ServeConfig.model_validate(config)
        torch.set_num_threads(max(1, round(common.cpus_per_replica)))
        self._server = ModelServer(
            load(**served.load.model_dump(exclude_none=True)),
            served.sampling,
            limits=common.limits,
            engine=common.engine,
            name=served.id,
            replica=serve.get_replica_context().replica_id.unique_id,
            round_timeout_s=common.round_timeout_s,
        )

    async def generate(
        self, request: GenerationRequest, cache_salt: str, arrived: float
    ) -> AsyncGenerator[Piece | RequestError, None]:
        """The pieces of an answer; a refusal is the last item: it is no failure of the replica."""
        try:
            async for piece in self._server.generate(request, cache_salt, arrived):
                yield piece
        except RequestError as error:
            _exit_if_dead(error)
            yield error

    async def tokenize(self, request: TokenizeRequest) -> Tokens | RequestError:
        """Token ids of a prompt, or the refusal."""
        try:
            return await self._server.tokenize(request)
        except RequestError as error:
            return error

    async def detokenize(self, request: DetokenizeRequest) -> Detokenized | RequestError:
        """Text of token ids, or the refusal."""
        try:
            return await self._server.detokenize(request)
        except RequestError as error:
            return error

    async def facts(self) -> ModelFacts:
        """What the checkpoint says."""
        return await self._server.facts()

    async def metrics(self) -> str:
        """What this replica counted."""
        return "".join(await self._server.metrics())

    async def check_health(self) -> None:
        """Ends this process if the engine died, or hangs."""
        try:
            await self._server.check_health()
        except RequestError as error:
            _exit_if_dead(error)
            raise


def _exit_if_dead(error: RequestError) -> None:
    """Ends a replica whose engine died: Serve's routers drop it and its controller replaces it at
    once. A health check that fails would leave it in rotation until it has failed three times.
    """
    if error.code == ENGINE_DEAD:
        logger.critical("the replica ends: %s", error.message)
        logging.shutdown()
        os._exit(1)  # a thread that hangs would hold up any other way


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
        _log_through_serve()
        self._replicas, self._keys = replicas, keys
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


class RemoteServer:
    """A `Server` whose model lives in a Serve deployment.

    Args:
        handle: the deployment of `ModelReplica`s.
        is_prefix_aware: whether turns of one conversation go to one replica.
        max_requests: that all replicas together run and let wait; more are refused here, at once.
        health: of the application's deployments.
        name: of the model, for the metrics.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        *,
        is_prefix_aware: bool,
        max_requests: int,
        health: DeploymentHealth,
        name: str,
    ) -> None:
        self._handle, self._is_prefix_aware, self._health = handle, is_prefix_aware, health
        self._admission = Admission(max_requests)
        self._metrics = EndpointMetrics(name, lambda: self._admission.num_requests)
        self._facts: ModelFacts | None = None
        self._facts_until = 0.0

    async def generate(
        self, request: GenerationRequest, cache_salt: str = ""
    ) -> AsyncGenerator[Piece, None]:
        """Yields the pieces; closing the generator cancels the request in the replica.

        A request whose replica dies is tried again, unless the client has seen a part already.

        Raises:
            RequestError: the replica's refusal, 429 if too many wait, 503 if it is gone, 500 if it
                raised.
        """
        arrived = time.time()  # replicas, perhaps on other nodes, count from here
        # Serve's router would refuse it too, but asking it takes several times as long.
        with self._admission.place():
            async with aclosing(self._with_retries(request, cache_salt, arrived)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _with_retries(
        self, request: GenerationRequest, cache_salt: str, arrived: float
    ) -> AsyncGenerator[Piece, None]:
        for attempt in range(_MAX_ATTEMPTS):
            num_given = 0
            pieces = self._attempt(request, cache_salt, arrived, attempt)
            try:
                async with aclosing(pieces if request.stream else _at_once(pieces)) as given:
                    async for piece in given:
                        num_given += 1
                        yield piece
                return
            except _ReplicaLostError as error:
                if num_given or attempt == _MAX_ATTEMPTS - 1:
                    raise
                logger.warning("attempt %d: %s: trying again", attempt + 1, error)
                await asyncio.sleep(_RETRY_DELAY_S * 2**attempt)

    async def _attempt(
        self, request: GenerationRequest, cache_salt: str, arrived: float, attempt: int
    ) -> AsyncGenerator[Piece, None]:
        handle = self._handle.options(stream=True)
        if self._is_prefix_aware:
            key = conversation_key(request, cache_salt)  # without one, all attempts have the same
            handle = handle.options(session_id=f"{key}/{attempt}" if attempt else key)
        remote = handle.generate.remote(request, cache_salt, arrived)
        response = cast(DeploymentResponseGenerator, remote)
        try:
            with self._refusals():
                async for item in response:
                    if isinstance(item, RequestError):
                        raise item
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()
            raise

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What Ray raises, as `RequestError`s."""
        try:
            yield
        except BackPressureError as error:
            raise self._admission.refusal() from error
        except (RayActorError, RayServeException) as error:
            raise _ReplicaLostError(type(error).__name__) from error
        except RayTaskError as error:  # another replica would raise it, too
            logger.error("a replica raised", exc_info=error)
            raise internal_error() from error

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Token ids of a prompt; raises as `generate` does."""
        return await self._ask("tokenize", request)

    async def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        """Text of token ids; raises as `generate` does."""
        return await self._ask("detokenize", request)

    async def facts(self) -> ModelFacts:
        """What the checkpoint says, asked of a replica now and then, since a new one may have
        read other weights; raises as `generate` does. Wakes no model that sleeps."""
        if self._facts is not None and time.monotonic() < self._facts_until:
            return self._facts
        if not await self._health.is_running(self._handle.deployment_name):
            if self._facts is not None:
                return self._facts
            raise not_ready("no replica of the model runs")
        try:
            facts: ModelFacts = await asyncio.wait_for(self._ask("facts"), _FACTS_TIMEOUT_S)
        except TimeoutError as error:
            raise not_ready("no replica of the model answered yet") from error
        if facts.fingerprint is not None:
            self._facts, self._facts_until = facts, time.monotonic() + _FACTS_PERIOD_S
        return facts

    async def _ask(self, method: str, *args: Any) -> Any:
        with self._refusals():
            answer = await getattr(self._handle, method).remote(*args)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def metrics(self) -> list[str]:
        """What is counted here and in the replicas, if they answer within seconds."""
        ours, response = self._metrics.text(), self._handle.broadcast("metrics")
        try:
            theirs = await asyncio.to_thread(response.results, timeout_s=_METRICS_TIMEOUT_S)
            return [ours, *theirs]
        except (RayActorError, RayTaskError, RayServeException, TimeoutError) as error:
            logger.warning("no metrics of %s: %s", self._handle.deployment_name, error)
            return [ours]

    async def check_health(self) -> None:
        """Returns if the model can answer, as Serve knows it; raises 503 otherwise."""
        await self._health.check(self._handle.deployment_name)


class _ReplicaLostError(RequestError):
    """503: a replica died, or ended because its engine did."""

    def __init__(self, reason: str) -> None:
        message = f"the model's replica failed: {reason}"
        super().__init__(message, status=503, code="replica_failed", retry_after_s=5)


def _log_through_serve() -> None:
    """Our lines go where Serve's go, at its level. In a replica only its logger has handlers: of
    the root's there would be warnings at most.
    """
    ours = logging.getLogger("a2d_ray")
    ours.parent = serve_logger
    ours.setLevel(serve_logger.level)


def _max_requests(config: ServeConfig) -> int:
    """Requests for one model that its replicas run and let wait."""
    scaling = config.autoscaling
    most_replicas = config.num_replicas if scaling is None else scaling.max_replicas
    return most_replicas * config.max_ongoing_requests + config.max_queued_requests


async def _at_once(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The pieces, when all of them are there."""
    async with aclosing(pieces):
        whole = [piece async for piece in pieces]
    for piece in whole:
        yield piece


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
