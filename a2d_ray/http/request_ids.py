"""One id per request: the client gets it, and our log and Ray Serve's have it."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SERVE_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Serve's proxies look for `serve_middlewares`; read when they start."""
SERVE_CALLBACK = "a2d_ray.http.request_ids:serve_middlewares"

_HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def request_id_of(headers: Headers) -> str:
    """The trace id of ``traceparent``, else the caller's ``x-request-id``, else a new id.

    Source: W3C Trace Context.
    """
    trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return trace[1] if trace else plain_request_id(headers)


def plain_request_id(headers: Headers) -> str:
    """``x-request-id``, or a new id for one that is longer than 128 characters or holds others than
    letters, digits and ``_.:-``: it would let callers write into logs what they like.
    """
    given = headers.get(_HEADER, "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


class RequestIds:
    """ASGI middleware: request and response carry `request_id_of` as ``x-request-id``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        MutableHeaders(scope=scope)[_HEADER] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, named)


def serve_middlewares() -> list[Middleware]:
    """What Serve's proxies put around themselves. Without it they echo an id of any form, and give
    one of their own to a request that has none, before an application sees it.
    """
    return [Middleware(RequestIds)]
