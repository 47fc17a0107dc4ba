"""A model in a replica of Ray Serve: `ModelServer`, whose refusals travel as values."""

import logging
import os
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from a2d_ray.config import ServeConfig, ServedModel
from a2d_ray.http.errors import ENGINE_DEAD, RequestError
from a2d_ray.serving.openai.pieces import ModelFacts, Piece
from a2d_ray.serving.openai.protocol import GenerationRequest
from a2d_ray.serving.openai.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens

_log = logging.getLogger(__name__)
SERVE_LOGGER = logging.getLogger("ray.serve")


class ModelReplica:
    """A model in a process of its own.

    Args:
        model: a `ServedModel` as plain values.
        config: the `ServeConfig` as plain values.
    """

    def __init__(self, model: dict[str, Any], config: dict[str, Any]) -> None:
        import torch

        from a2d_ray.runs.resources import reserved_device
        from a2d_ray.serving.model.server import ModelServer
        from a2d_ray.text.language_model import load

        log_through_serve()
        served = ServedModel.model_validate(model)
        common = ServeConfig.model_validate(config)
        torch.set_num_threads(max(1, round(common.cpus_per_replica)))
        load_options = served.load.model_dump(exclude_none=True)
        load_options["device"] = reserved_device(served.load.device)
        self._server = ModelServer(
            load(**load_options),
            served.sampling,
            limits=common.limits,
            engine=common.engine,
            name=served.id,
            replica=serve.get_replica_context().replica_id.unique_id,
            separate_reasoning=served.separate_reasoning,
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
        _log.critical("the replica ends: %s", error.message)
        logging.shutdown()
        os._exit(1)  # a thread that hangs would hold up any other way


def log_through_serve() -> None:
    """Our lines go where Serve's go, at its level. In a replica only its logger has handlers: of
    the root's there would be warnings at most.
    """
    ours = logging.getLogger("a2d_ray")
    ours.parent = SERVE_LOGGER
    ours.setLevel(SERVE_LOGGER.level)
