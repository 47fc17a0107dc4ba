"""Every request has an id, and one line in the log that holds nothing of what it said."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a2d_ray.http.access import ANYBODY
from a2d_ray.serving.metrics import HttpMetrics

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def request_id_of(headers: Headers) -> str:
    """The caller's ``x-request-id``, else the trace id of its ``traceparent``, else a new id.

    An id that is longer than 128 characters or holds others than letters, digits and ``_.:-`` is
    not taken over: it would let callers write into logs what they like.

    Source: W3C Trace Context.
    """
    given = headers.get("x-request-id", "")
    if _ID.fullmatch(given):
        return given
    trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return trace[1] if trace else uuid.uuid4().hex


class RequestLog:
    """ASGI middleware: sets ``x-request-id`` of request and response, logs a line at the end.

    Args:
        app: what answers.
        adds_header: whether to add the id to the response; Ray Serve does so itself.
        metrics: count the answers.
    """

    def __init__(self, app: ASGIApp, *, adds_header: bool, metrics: HttpMetrics) -> None:
        self._app, self._adds_header, self._metrics = app, adds_header, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request and logs it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = request_id_of(Headers(scope=scope)), time.perf_counter()
        scope["request_id"], status, size = request_id, 499, 0  # 499: left without an answer

        async def observed(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._adds_header:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.count(scope["method"], _route(scope), status)
            logger.info(
                "request_id=%s method=%s path=%s status=%d caller=%s bytes=%d ms=%.1f",
                request_id,
                scope["method"],
                _route(scope),
                status,
                scope.get("caller", ANYBODY).name,
                size,
                1e3 * (time.perf_counter() - started),
            )


def _route(scope: Scope) -> str:
    """The route's pattern, not the path: a path is the caller's text."""
    return getattr(scope.get("route"), "path", "-")
