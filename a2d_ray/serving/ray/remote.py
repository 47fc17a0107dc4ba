"""A model in other processes, as the ingress sees it: room, retries, and what Ray raises."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from a2d_ray.http.errors import RequestError, internal_error, not_ready
from a2d_ray.serving.model.metrics import EndpointMetrics
from a2d_ray.serving.openai.pieces import ModelFacts, Piece
from a2d_ray.serving.openai.protocol import GenerationRequest
from a2d_ray.serving.openai.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from a2d_ray.serving.ray.admission import Admission
from a2d_ray.serving.ray.conversations import conversation_key
from a2d_ray.serving.ray.health import DeploymentHealth

_log = logging.getLogger(__name__)

_METRICS_TIMEOUT_S = 5.0
_FACTS_TIMEOUT_S = 2.0
_FACTS_PERIOD_S = 10.0
_MAX_ATTEMPTS = 3
_RETRY_DELAY_S = 0.2


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
        self._handle = handle
        self._is_prefix_aware = is_prefix_aware
        self._health = health
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
                _log.warning("attempt %d: %s: trying again", attempt + 1, error)
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
            _log.error("a replica raised", exc_info=error)
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
            self._facts = facts
            self._facts_until = time.monotonic() + _FACTS_PERIOD_S
        return facts

    async def _ask(self, method: str, *args: Any) -> Any:
        with self._refusals():
            answer = await getattr(self._handle, method).remote(*args)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def metrics(self) -> list[str]:
        """What is counted here and in the replicas, if they answer within seconds."""
        ours = self._metrics.text()
        response = self._handle.broadcast("metrics")
        try:
            theirs = await asyncio.to_thread(response.results, timeout_s=_METRICS_TIMEOUT_S)
            return [ours, *theirs]
        except (RayActorError, RayTaskError, RayServeException, TimeoutError) as error:
            _log.warning("no metrics of %s: %s", self._handle.deployment_name, error)
            return [ours]

    async def check_health(self) -> None:
        """Returns if the model can answer, as Serve knows it; raises 503 otherwise."""
        await self._health.check(self._handle.deployment_name)


class _ReplicaLostError(RequestError):
    """503: a replica died, or ended because its engine did."""

    def __init__(self, reason: str) -> None:
        message = f"the model's replica failed: {reason}"
        super().__init__(message, status=503, code="replica_failed", retry_after_s=5)


async def _at_once(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The pieces, when all of them are there."""
    async with aclosing(pieces):
        whole = [piece async for piece in pieces]
    for piece in whole:
        yield piece
