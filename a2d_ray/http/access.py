"""Who may ask, and how often: bearer keys and a rate limit, before a body is read."""

import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from a2d_ray.config import SecuritySection
from a2d_ray.http.errors import RequestError, error_response

_OPEN_PATHS = ("/", "/health", "/ping")
_OPEN_FOLDER = "/static/"


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: a fingerprint of the key, for logs; it cannot be turned back.
        cache_salt: keeps the caller's cached prompts apart from those of others; "": shared.
    """

    name: str
    cache_salt: str


ANYBODY = Caller("-", "")


@dataclass(frozen=True)
class ApiKeys:
    """Bearer keys, kept as SHA-256 digests: what holds this object can check keys, not tell them.

    Attributes:
        digests: of the keys; none: everybody may ask.
        is_isolated: whether keys have prefix caches of their own.
    """

    digests: tuple[bytes, ...] = ()
    is_isolated: bool = True

    @classmethod
    def of(cls, keys: Sequence[str], *, is_isolated: bool = True) -> "ApiKeys":
        """The digests of keys."""
        return cls(tuple(_digest(key) for key in keys), is_isolated)

    @classmethod
    def read(cls, security: SecuritySection) -> "ApiKeys":
        """Keys of the environment variable and the file that a configuration names.

        Raises:
            ValueError: a file that cannot be read or holds no key, a key that no header holds, or
                none where `require_keys` wants one.
        """
        keys = read_keys(security)
        if security.require_keys and not keys:
            raise ValueError(
                f"security.require_keys is set and there is no key: set {security.api_keys_env} "
                "where the application is built (serve deploy and RayService: on the cluster's "
                "nodes), or security.api_keys_file"
            )
        return cls.of(keys, is_isolated=security.isolate_prefix_cache)

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this ``Authorization`` header. Takes the same time for every wrong key.

        Raises:
            RequestError: 401.
        """
        if not self.digests:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        # Every key is compared, whichever fits.
        fits = [hmac.compare_digest(digest, known) for known in self.digests]
        if scheme.lower() != "bearer" or not any(fits):
            what = "Incorrect API key provided" if authorization else "You sent no API key"
            raise RequestError(
                f"{what}: send the header 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )
        salt = hashlib.sha256(b"cache salt" + digest).hexdigest()[:32] if self.is_isolated else ""
        return Caller(hashlib.sha256(b"name" + digest).hexdigest()[:8], salt)


def open_to_all(security: SecuritySection, where: str) -> str:
    """A warning about an endpoint without keys."""
    return (
        f"everybody who reaches {where} can use these models: set {security.api_keys_env} or "
        "security.api_keys_file to ask for keys"
    )


def read_keys(security: SecuritySection) -> list[str]:
    """The keys themselves; see `ApiKeys.read`."""
    keys = [key.strip() for key in os.environ.get(security.api_keys_env, "").split(",")]
    if security.api_keys_file is not None:
        keys += _read_lines(security.api_keys_file)
    keys = [key for key in keys if key]
    for key in keys:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("an API key must be printable ASCII without spaces")
    return keys


@dataclass
class RateLimit:
    """A token bucket per caller: `per_minute` requests at once, then one every 60 / per_minute s.

    Attributes:
        per_minute: None: no limit.
        clock: seconds.
    """

    per_minute: int | None
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)  # tokens, when

    def take(self, caller: Caller) -> None:
        """Counts a request.

        Raises:
            RequestError: 429, with the seconds until the next one is free.
        """
        if self.per_minute is None:
            return
        now = self.clock()
        rate = self.per_minute / 60
        tokens, since = self._buckets.get(caller.name, (float(self.per_minute), now))
        tokens = min(float(self.per_minute), tokens + (now - since) * rate)
        if tokens < 1:
            raise RequestError(
                f"more than {self.per_minute} requests in a minute: try again later",
                status=429,
                code="rate_limit_exceeded",
                retry_after_s=max(1, math.ceil((1 - tokens) / rate)),
            )
        self._buckets[caller.name] = (tokens - 1, now)


class Gate:
    """ASGI middleware: 401 without a key and 429 beyond the rate; puts the `Caller` into the scope.

    The page, its files, ``/health`` and ``/ping`` are open to all; they hold nothing of anybody.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, rate: RateLimit) -> None:
        self._app = app
        self._keys = keys
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request pass, or answers it."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            caller = self._keys.caller(Headers(scope=scope).get("authorization"))
            scope["caller"] = caller
            if scope["method"] == "POST":
                self._rate.take(caller)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _read_lines(path: str) -> list[str]:
    try:
        lines = Path(path).expanduser().read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"security.api_keys_file ({path}) cannot be read: {error}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"security.api_keys_file ({path}) holds no key: write one per line")
    return keys
