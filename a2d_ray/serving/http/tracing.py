"""Every request has one line in the log, which holds nothing of what it said."""

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a2d_ray.http.access import ANYBODY
from a2d_ray.http.request_ids import plain_request_id
from a2d_ray.serving.model.metrics import HttpMetrics

_log = logging.getLogger(__name__)


class RequestLog:
    """ASGI middleware: counts and logs a request when it is over.

    Args:
        app: what answers.
        metrics: count the answers.
    """

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request and logs it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = plain_request_id(Headers(scope=scope))
        started = time.perf_counter()
        status = 499  # 499: left without an answer
        size = 0

        async def observed(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.count(scope["method"], _route(scope), status)
            _log.info(
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
