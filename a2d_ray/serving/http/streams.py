"""HTTP beneath the endpoints: server-sent events, clients that go away."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

_Result = TypeVar("_Result")


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
