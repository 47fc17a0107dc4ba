"""Every failure as an error object; a body that does not validate names the client's parameter."""

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from a2d_ray.config.errors import OptionError
from a2d_ray.http.bodies import Plain
from a2d_ray.http.errors import RequestError, error_response, internal_error

_log = logging.getLogger(__name__)
_NO_OBJECT = ("missing", "model_attributes_type", "model_type", "dict_type")


def _fields(model: type[Plain]) -> set[str]:
    own = {field.alias or name for name, field in model.model_fields.items()}
    return own.union(*(_fields(each) for each in model.__subclasses__()))


def to_request_error(problems: Sequence[Any]) -> RequestError:
    """The most telling of pydantic's ``errors()``, as a 400.

    Args:
        problems: their ``loc`` begins with ``body``.
    """
    problem = max(problems, key=lambda p: len(p["loc"]))  # inside a union, not at its first branch
    if problem["type"] == "json_invalid":
        return RequestError("the body is not valid JSON", code="invalid_json")
    is_unknown = problem["type"] == "extra_forbidden"
    param = _param(problem["loc"][1:], is_unknown=is_unknown)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, OptionError):
        cause = cause.under(param) if param else cause
        return RequestError(str(cause), param=cause.field, code="invalid_value")
    if is_unknown:
        return RequestError(
            f"{param} is not a known parameter", param=param, code="unknown_parameter"
        )
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    return RequestError(f"{param or 'the body'}: {message}", param=param, code="invalid_value")


def _no_object(problems: Sequence[Any], content_type: str) -> RequestError | None:
    """A 400 for a body that is no JSON object at all; None: it is one."""
    (problem, *_) = problems
    if list(problem["loc"]) != ["body"] or problem["type"] not in _NO_OBJECT:
        return None
    fix = "send a JSON object"
    if problem["type"] != "missing" and "json" not in content_type.lower():
        fix = "send the header Content-Type: application/json"
        fix = f"{fix}, not {content_type}" if content_type else fix
    return RequestError(f"the body is no JSON object: {fix}", code="invalid_json")


def _param(path: Sequence[str | int], *, is_unknown: bool) -> str | None:
    """``messages[0].role`` from a location, without pydantic's names of union branches."""
    known = _fields(Plain)  # of all requests that were defined
    parts = [part for part in path if isinstance(part, int) or part in known]
    if is_unknown and path[-1] not in known:
        parts.append(path[-1])
    parts = [part for part, _ in groupby(parts)]  # a union's tag may be called like its field
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or None


def add_error_handlers(app: FastAPI) -> None:
    """Answers refusals, invalid bodies and defects with OpenAI's error object."""

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        content_type = request.headers.get("content-type", "")
        return error_response(_no_object(problems, content_type) or to_request_error(problems))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(RequestError(message, status=error.status_code))

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; access logs do

    @app.exception_handler(Exception)
    async def on_defect(request: Request, error: Exception) -> Response:
        _log.error("a defect answered %s", request.url.path, exc_info=error)
        return error_response(internal_error())
