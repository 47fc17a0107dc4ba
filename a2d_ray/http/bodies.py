"""Bodies of requests: strict types, and a limit on size and time."""

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from a2d_ray.config.texts import is_text
from a2d_ray.http.errors import RequestError, error_response

_MAX_DEPTH = 100


class Plain(BaseModel):
    """Types as they are, finite numbers, texts of characters, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_json(cls, value: Any) -> Any:
        check_json(value)
        return value


def check_json(value: Any) -> None:
    """Refuses what `json.loads` reads and nothing behind it can take.

    Args:
        value: of JSON; models in it have checked themselves.

    Raises:
        ValueError: half a surrogate pair, which no UTF-8 holds; more than 100 levels.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        if any(isinstance(item, str) and not is_text(item) for item in level):
            raise ValueError("holds half a surrogate pair (\\ud800 to \\udfff), which is no text")
        dicts = [item for item in level if isinstance(item, dict)]
        level = [inner for item in level if isinstance(item, list) for inner in item]
        level += [inner for item in dicts for pair in item.items() for inner in pair]
        if not level:
            return
    raise ValueError(f"is nested more than {_MAX_DEPTH} levels deep")


class BodyLimit:
    """ASGI middleware: answers 413 to a body of more than `max_bytes`, and stops reading it.

    Args:
        app: gets the request when the whole body is there.
        max_bytes: of a body.
        timeout_s: a body that takes longer gets 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

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
        messages = []
        size = 0
        more = True
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
