"""Text that people type: what is no text at all, and values in YAML."""

import json
from typing import Any

import yaml

from a2d_ray.config.errors import OptionError


def is_text(text: str) -> bool:
    """Whether it holds characters only: no half of a surrogate pair, no byte that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_yaml(key: str, text: str) -> Any:
    """The value that `text` stands for, in JSON or YAML.

    Raises:
        OptionError: it is neither, in one line.
    """
    try:
        return json.loads(text, parse_constant=_no_number)  # YAML takes 1e-5 for a text
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fix = f"{yaml_problem(error)}; close what is open, or put quotes around a text"
        raise OptionError(key, text, "is not valid YAML", fix) from None


def yaml_problem(error: Exception) -> str:
    """What a reader of YAML found, in one line."""
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    found = getattr(error, "problem", None) or str(error)
    return " ".join(found.split()) + place


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
