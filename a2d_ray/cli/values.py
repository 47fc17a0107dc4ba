"""A configuration as YAML, and what differs between two."""

from typing import Any

import yaml
from pydantic import BaseModel


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def first_difference(ours: Any, theirs: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key whose values differ, and both values; None: they are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in ours | theirs:
            found = first_difference(ours.get(name), theirs.get(name), f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if ours == theirs else (key, ours, theirs)
