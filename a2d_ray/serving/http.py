"""HTTP beneath the endpoints: size limit, server-sent events, clients that go away."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a2d_ray.serving.errors import RequestError

Result = TypeVar("Result")


def error_response(error: RequestError) -> JSONResponse:
    """OpenAI's error object with its status and headers."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


class BodyLimit:
    """ASGI middleware: answers 413 to a body of more than `max_bytes`, and stops reading it.

    Args:
        app: gets the request when the whole body is there.
        max_bytes: of a body.
        timeout_s: a body that takes longer gets 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body, then passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                messages = await self._read(scope, receive)
        except (RequestError, TimeoutError) as error:
            refusal = error if isinstance(error, RequestError) else self._too_slow()
            await error_response(refusal)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message]:
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        messages, size, more = [], 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return messages

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body is larger than {self._max_bytes} bytes", status=413, code="body_too_large"
        )

    def _too_slow(self) -> RequestError:
        return RequestError(
            f"the body was not complete after {self._timeout_s:g} s", status=408, code="timeout"
        )


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


async def unless_disconnected(work: Coroutine[Any, Any, Result], request: Request) -> Result:
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
