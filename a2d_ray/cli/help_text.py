"""``--help``: every key with its type, the job's own default, and what it needs beside it."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from a2d_ray.config.base import Conditions, Section, condition_text
from a2d_ray.config.commands import command_of
from a2d_ray.config.errors import shown
from a2d_ray.config.keys import section_of


def help_text(config_class: type[BaseModel], job_name: str, shipped: dict[str, Any]) -> str:
    """The text of ``--help``.

    Args:
        config_class: what the job takes.
        job_name: stem of ``jobs/NAME.py`` and of its YAML file.
        shipped: what its own file sets.
    """
    head = [
        f"usage: {command_of(job_name)} [CONFIG.yaml] [key.sub=value ...] "
        "[--dry-run] [--verbose] [--help]",
        "",
        (config_class.__doc__ or "").strip(),
        f"CONFIG.yaml lies over jobs/configs/{job_name}.yaml, whose values are the defaults below. "
        "--dry-run prints the whole configuration. --verbose shows what libraries print, too.",
        "",
    ]
    return "\n".join([*head, *_lines(config_class, shipped), ""])


def _lines(
    model: type[BaseModel], shipped: Any, prefix: str = "", outer: Mapping[str, str] | None = None
) -> list[str]:
    needs = {**(outer or {}), **_needs(model, prefix)}
    lines = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        given = shipped.get(name, field) if isinstance(shipped, dict) else field
        if (inner := section_of(field)) is not None:
            title = f"{key}: {field.description or ''}".rstrip()
            lines += ["", title, *_lines(inner, given, f"{key}.", needs)]
            continue
        default = _schema_default(field) if given is field else shown(given)
        lines.append(f"  {key}={_type_name(field)}  (default: {default})")
        lines.append(f"      {field.description or ''}{needs.get(key, '')}".rstrip())
    return lines


def _schema_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return shown(field.get_default(call_default_factory=True))


def _needs(model: type[BaseModel], prefix: str) -> dict[str, str]:
    """What options of a section and below need beside them, by their dotted keys."""
    conditions: Conditions = model.effective_if if issubclass(model, Section) else {}
    return {
        f"{prefix}{key}": f" Only with {' and '.join(_wanted(prefix, needed))}."
        for key, needed in conditions.items()
    }


def _wanted(prefix: str, needed: Mapping[str, Any]) -> list[str]:
    texts = {f"{prefix}{other}": condition_text(wanted) for other, wanted in needed.items()}
    return [f"{key}={text}" if text else key for key, text in texts.items()]


def _type_name(field: FieldInfo) -> str:
    name = getattr(field.annotation, "__name__", None)
    if name is None or "[" in str(field.annotation):
        name = str(field.annotation)
    return name.replace("typing.", "").replace("Literal", "").replace("NoneType", "none")
