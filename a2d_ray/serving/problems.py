"""A body that does not validate, as an error that names the parameter as the client wrote it."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from a2d_ray.serving.errors import RequestError
from a2d_ray.serving.options import Plain


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
    if is_unknown:
        return RequestError(
            f"{param} is not a known parameter", param=param, code="unknown_parameter"
        )
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    return RequestError(f"{param or 'the body'}: {message}", param=param, code="invalid_value")


def _param(path: Sequence[str | int], *, is_unknown: bool) -> str | None:
    """``messages[0].role`` from a location, without pydantic's names of union branches."""
    known = _fields(Plain)  # of all requests that were defined
    parts = [part for part in path if isinstance(part, int) or part in known]
    if is_unknown and path[-1] not in known:
        parts.append(path[-1])
    parts = [part for part, _ in groupby(parts)]  # a union's tag may be called like its field
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or None
