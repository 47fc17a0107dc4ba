"""The HTTP application: OpenAI's endpoints over any `Server`s. FastAPI, no Ray."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from a2d_ray import __version__
from a2d_ray.serving.errors import RequestError, model_not_found
from a2d_ray.serving.http import BodyLimit, EventStream, error_response, unless_disconnected
from a2d_ray.serving.pieces import Piece, Server
from a2d_ray.serving.problems import to_request_error
from a2d_ray.serving.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from a2d_ray.serving.responses import (
    ChatCompletion,
    ChatFormat,
    Completion,
    CompletionFormat,
    Format,
    Usage,
)

logger = logging.getLogger(__name__)


def create_app(servers: Mapping[str, Server], *, max_body_bytes: int = 4 * 2**20) -> FastAPI:
    """OpenAI's endpoints over `servers`, which are named by the ids that clients use."""
    app = FastAPI(title="a2d-ray", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    _add_error_handlers(app)
    _add_model_routes(app, servers)

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        return await _answer(servers, body, ChatFormat(body.model), request)

    @app.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answer(servers, body, CompletionFormat(body.model), request)

    return app


def _add_model_routes(app: FastAPI, servers: Mapping[str, Server]) -> None:
    created = int(time.time())

    def card(model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": created, "owned_by": "a2d-ray"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(model) for model in servers]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        if model not in servers:
            raise model_not_found(model)
        return card(model)

    @app.get("/health")
    async def health() -> dict[str, str]:
        for server in servers.values():
            await server.check_health()
        return {"status": "ok"}


async def _answer(
    servers: Mapping[str, Server], body: GenerationRequest, form: Format, request: Request
) -> Response:
    if body.model not in servers:
        raise model_not_found(body.model)
    pieces = servers[body.model].generate(body)
    if not body.stream:
        whole = await unless_disconnected(_whole(pieces, form), request)
        return Response(whole.model_dump_json(), media_type="application/json")
    # What goes wrong before the first piece still gets its own status.
    first = await unless_disconnected(_first(pieces), request)
    events = _events(first, pieces, form, with_usage=body.is_usage_streamed())
    return EventStream(events, pieces)


async def _whole(pieces: AsyncGenerator[Piece, None], form: Format) -> BaseModel:
    texts: dict[int, list[str]] = {}
    last: dict[int, Piece] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            texts.setdefault(piece.index, []).append(piece.text)
            last[piece.index] = piece
    order = sorted(last)
    return form.whole(["".join(texts[i]) for i in order], [last[i] for i in order])


async def _first(pieces: AsyncGenerator[Piece, None]) -> Piece:
    return await anext(pieces)


async def _events(
    first: Piece, pieces: AsyncGenerator[Piece, None], form: Format, *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """The answer as server-sent events."""
    last: dict[int, Piece] = {}
    try:
        async for piece in _chain(first, pieces):
            opening = [] if piece.index in last else form.opening(piece.index)
            last[piece.index] = piece
            for chunk in (*opening, *form.chunks(piece)):
                yield _event(chunk.model_dump_json())
    except RequestError as error:
        yield _event(json.dumps(error.body()))
        return
    if with_usage:
        usage = Usage.of(piece.counts for piece in last.values())
        yield _event(form.usage(usage).model_dump_json())
    yield _event("[DONE]")


async def _chain(first: Piece, rest: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    yield first
    async for piece in rest:
        yield piece


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(to_request_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(RequestError(message, status=error.status_code))

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; access logs do

    @app.exception_handler(Exception)
    async def on_defect(request: Request, error: Exception) -> Response:
        logger.error("a defect answered %s", request.url.path, exc_info=error)
        return error_response(RequestError("internal error", status=500, code="internal"))
