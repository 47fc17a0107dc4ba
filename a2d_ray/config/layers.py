"""Configurations as nested mappings: one laid over another, and made a model."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from a2d_ray.config.errors import ConfigError, NoEffectError, explain
from a2d_ray.config.keys import section_of

Config = TypeVar("Config", bound=BaseModel)
Values = dict[str, Any]


def lay_over(model: type[BaseModel], lower: Values, upper: Values) -> Values:
    """`upper` over `lower`: sections are merged, any other value (a list, a mapping) replaces."""
    values = {**lower}
    for name, value in upper.items():
        field = model.model_fields.get(name)
        section = section_of(field) if field is not None else None
        below = lower.get(name)
        if section is not None and isinstance(value, dict) and isinstance(below, dict):
            value = lay_over(section, below, value)
        values[name] = value
    return values


def never(error: NoEffectError) -> bool:
    """No option gives way: what has no effect is refused."""
    return False


def always(error: NoEffectError) -> bool:
    """What has no effect is left out, for configurations that are derived from others."""
    return True


def validate(
    config_class: type[Config],
    values: Values,
    *,
    gives_way: Callable[[NoEffectError], bool] = never,
) -> Config:
    """`values` as a frozen configuration.

    Args:
        config_class: the pydantic model to fill.
        values: nested; they stay as they are.
        gives_way: whether an option without effect is left out, instead of refused.

    Raises:
        ConfigError: one line per problem, naming key, value and fix.
    """
    values = deepcopy(values)
    while True:
        try:
            return config_class.model_validate(values)
        except ValidationError as error:
            problems = explain(config_class, error)
        idle = [each for each in problems if isinstance(each, NoEffectError) and gives_way(each)]
        if not idle:
            raise ConfigError(*problems)
        for each in idle:
            remove(values, each.field.split("."))


def to_earlier(layers: Sequence[Values]) -> Callable[[NoEffectError], bool]:
    """Which options give way: those of an earlier layer than what takes their effect.

    So ``schedule.max_steps=5`` on the command line goes with a file that sets `schedule.epochs`,
    but a file that sets both is refused.
    """

    def layer_of(key: str) -> int:
        path = key.split(".")
        return max((n for n, layer in enumerate(layers) if is_set(layer, path)), default=-1)

    return lambda error: layer_of(error.field) < layer_of(error.cause)


def is_set(values: Any, path: Sequence[str]) -> bool:
    """Whether something is written at a path, or in place of a section on the way to it."""
    for part in path:
        if isinstance(values, list):
            values = values[int(part)] if part.isdigit() and int(part) < len(values) else None
        elif isinstance(values, dict):
            if part not in values:
                return False
            values = values[part]
    return True


def set_value(values: Any, path: Sequence[str], value: Any) -> None:
    """Puts a value where the path leads; missing mappings are made, list items must be there."""
    for depth, part in enumerate(path[:-1]):
        if isinstance(values, dict) and not isinstance(values.get(part), dict | list):
            values[part] = {}
        values = values[_index(values, path, depth)]
    values[_index(values, path, len(path) - 1)] = value


def remove(values: Any, path: Sequence[str]) -> None:
    """Takes away what lies at a path."""
    for depth in range(len(path) - 1):
        values = values[_index(values, path, depth)]
    del values[path[-1]]


def _index(values: Any, path: Sequence[str], depth: int) -> Any:
    """The part of a path at a depth as a key of a mapping, or the number of a list's item."""
    part = path[depth]
    if isinstance(values, dict):
        return part
    if not part.isdigit() or int(part) >= len(values):
        key = ".".join(path[:depth])
        raise ConfigError(f"{key}.{part}: {key} has the items 0 to {len(values) - 1}")
    return int(part)
