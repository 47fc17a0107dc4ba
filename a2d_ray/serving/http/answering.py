"""Pieces of an answer as an HTTP response: whole, or as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from a2d_ray.http.errors import RequestError
from a2d_ray.serving.openai.formats import Format
from a2d_ray.serving.openai.pieces import Piece
from a2d_ray.serving.openai.responses import Usage

_Result = TypeVar("_Result")


async def answer(
    pieces: AsyncGenerator[Piece, None],
    form: Format,
    request: Request,
    *,
    is_streamed: bool,
    with_usage: bool,
    with_usage_in_chunks: bool = False,
) -> Response:
    """The response to a request.

    Args:
        pieces: of all choices.
        form: of the endpoint.
        request: whose client may go away.
        is_streamed: as server-sent events.
        with_usage: whether a last event carries the usage.
        with_usage_in_chunks: whether every other one does, as far as it has come.

    Raises:
        RequestError: what went wrong before the first piece: it still gets its own status.
    """
    if not is_streamed:
        return await answer_whole(pieces, form.whole, request)
    first = await unless_disconnected(_first(pieces), request)
    events = _events(
        first, pieces, form, with_usage=with_usage, with_usage_in_chunks=with_usage_in_chunks
    )
    return EventStream(events, pieces)


async def answer_whole(
    pieces: AsyncGenerator[Piece, None],
    form: Callable[[Sequence[Sequence[Piece]]], BaseModel],
    request: Request,
) -> Response:
    """The response to a request that is not streamed.

    Args:
        pieces: of all choices.
        form: makes the body, from the pieces of each choice.
        request: whose client may go away.
    """
    whole = form(await unless_disconnected(_choices(pieces), request))
    return Response(whole.model_dump_json(), media_type="application/json")


async def _choices(pieces: AsyncGenerator[Piece, None]) -> list[list[Piece]]:
    choices: dict[int, list[Piece]] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            choices.setdefault(piece.index, []).append(piece)
    return [choices[index] for index in sorted(choices)]


async def _first(pieces: AsyncGenerator[Piece, None]) -> Piece:
    return await anext(pieces)


async def _events(
    first: Piece,
    pieces: AsyncGenerator[Piece, None],
    form: Format,
    *,
    with_usage: bool,
    with_usage_in_chunks: bool,
) -> AsyncGenerator[str, None]:
    last: dict[int, Piece] = {}
    try:
        async for piece in _chain(first, pieces):
            opening = [] if piece.index in last else form.opening(piece.index)
            last[piece.index] = piece
            usage = Usage.of(p.counts for p in last.values()) if with_usage_in_chunks else None
            for chunk in (*opening, *form.chunks(piece)):
                yield _event(chunk.model_copy(update={"usage": usage}).model_dump_json())
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


class EventStream(StreamingResponse):
    """Server-sent events made from a source, which is closed as soon as the client goes away."""

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._generators = (events, source)  # a source outlives events that never began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generator in self._generators:
                await generator.aclose()


async def unless_disconnected(work: Coroutine[Any, Any, _Result], request: Request) -> _Result:
    """The result of `work`, which is cancelled if the client goes away.

    Raises:
        ClientDisconnect: it went away.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
