"""The same settings as before, or an error that names what differs."""

import json
from collections.abc import Mapping
from typing import Any

from a2d_ray.config.errors import OptionError, shown


def first_difference(ours: Any, theirs: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key whose values differ, and both values; None: they are equal."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in {**ours, **theirs}:
            found = first_difference(ours.get(name), theirs.get(name), f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if ours == theirs else (key, ours, theirs)


def check_same_settings(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    *,
    field: str,
    value: str,
    fix: str = "resume it as it was",
) -> None:
    """Refuses to go on with other settings than something was started with.

    Args:
        ours: present settings.
        theirs: those that it was started with, read from JSON or YAML.
        field: option that names what goes on.
        value: its value.
        fix: what to do, beside choosing another `field`.

    Raises:
        OptionError: the first setting that differs, with both values.
    """
    if (changed := first_difference(json.loads(json.dumps(ours)), theirs)) is not None:
        key, now, before = changed
        raise OptionError(
            field,
            value,
            f"was started with {key}={shown(before)}, not {shown(now)}",
            f"{fix}, or choose another {field}",
        )
