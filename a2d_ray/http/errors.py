"""What goes wrong with a request, as OpenAI's error object."""

from collections.abc import Iterable
from typing import Any, Self

from fastapi.responses import JSONResponse

ENGINE_DEAD = "engine_dead"
"""Code of a 503 after which another replica may answer."""


class RequestError(Exception):
    """An answer other than 200.

    Args:
        message: what is wrong, the value, the limit, and the fix.
        status: HTTP status.
        param: the request's field that is at fault, as the client wrote it.
        code: machine-readable reason.
        retry_after_s: seconds after which trying again makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).from_dict, (self.to_dict(),))

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments, for the way from a replica to the ingress."""
        return {
            "message": self.message,
            "status": self.status,
            "param": self.param,
            "code": self.code,
            "retry_after_s": self.retry_after_s,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(values["message"], **{k: v for k, v in values.items() if k != "message"})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def model_not_found(model: str) -> RequestError:
    """404: there is no such model."""
    return RequestError(
        f"The model {model!r} does not exist: GET /v1/models lists those that do",
        status=404,
        param="model",
        code="model_not_found",
    )


def not_found(param: str, name: str, choices: Iterable[str]) -> RequestError:
    """404: what `param` names is not among the choices."""
    return RequestError(
        f"The {param} {name!r} does not exist: choose from {list(choices)}",
        status=404,
        param=param,
        code=f"{param}_not_found",
    )


def not_ready(reason: str, *, code: str = "not_ready") -> RequestError:
    """503: the model cannot answer now."""
    return RequestError(reason, status=503, code=code, retry_after_s=5)


def internal_error() -> RequestError:
    """500: a defect, of which the log tells more."""
    return RequestError("internal error", status=500, code="internal")


def overloaded(reason: str, *, retry_after_s: int = 1) -> RequestError:
    """429: too many requests wait already."""
    return RequestError(reason, status=429, code="overloaded", retry_after_s=retry_after_s)


def error_response(error: RequestError) -> JSONResponse:
    """OpenAI's error object with its status and headers."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())
