"""Dotted keys of a configuration: which there are, and what lies at one."""

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, or may hold."""
    is_union = isinstance(field.annotation, UnionType)
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def kinds_of(annotation: Any) -> Iterator[Any]:
    """What a union is made of, without the bounds of its parts."""
    if get_origin(annotation) is Annotated:
        yield from kinds_of(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for kind in get_args(annotation):
            yield from kinds_of(kind)
    else:
        yield annotation


def find_field(model: type[BaseModel], path: Sequence[str]) -> FieldInfo | None:
    """The field at a path of names; None: there is none."""
    current: type[BaseModel] | None = model
    field = None
    for part in path:
        field = None if current is None else current.model_fields.get(part)
        if field is None:
            return None
        current = section_of(field)
    return field


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key, sections before what they hold."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if (inner := section_of(field)) is not None:
            keys += all_keys(inner, f"{prefix}{name}.")
    return keys


def near_key(model: type[BaseModel], key: str) -> str | None:
    """The known key that was probably meant."""
    known = all_keys(model)
    last = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, known, n=1) or [
        k for k in known if k.rsplit(".", 1)[-1] == last
    ]
    return near[0] if near else None


def value_at(section: Any, key: str) -> Any:
    """The value at a dotted key of a section; None where a section on the way is absent."""
    for part in key.split("."):
        section = getattr(section, part, None)
    return section
