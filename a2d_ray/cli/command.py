"""A job's arguments -> its configuration."""

import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import CliSettingsSource, SettingsError

from a2d_ray.cli.help_text import help_text
from a2d_ray.config.commands import command_of
from a2d_ray.config.errors import ConfigError, OptionError, unknown_key
from a2d_ray.config.keys import find_field, section_of
from a2d_ray.config.layers import Config, Values, lay_over, set_value, to_earlier, validate
from a2d_ray.config.texts import is_text, parse_yaml, yaml_problem
from a2d_ray.terminal.streams import output

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"  # a file per job, and what lies over it


def load_config(
    config_class: type[Config], job_name: str, argv: Sequence[str] | None = None
) -> Config:
    """Reads a job's configuration from its YAML files and the command line.

    Args:
        config_class: the pydantic model to fill.
        job_name: name of the job; its own file in ``jobs/configs/`` lies under the user's file.
        argv: arguments; None: the process's own.

    Returns:
        The frozen configuration. ``--help`` and ``--dry-run`` print and exit with 0.

    Raises:
        ConfigError: an unknown key, a bad value, an option without effect, an unreadable file.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "--help" in args or "-h" in args:
        output().write(help_text(config_class, job_name, shipped_values(job_name)))
        raise SystemExit(0)
    is_dry_run = "--dry-run" in args
    config = parse_config(config_class, job_name, [arg for arg in args if arg != "--dry-run"])
    if is_dry_run:
        output().write(to_yaml(config))
        raise SystemExit(0)
    return config


def parse_config(config_class: type[Config], job_name: str, args: Sequence[str]) -> Config:
    """The configuration for these arguments; see `load_config`."""
    for arg in args:
        if not is_text(arg):
            raise ConfigError(f"the argument {arg!r} holds bytes that are no UTF-8: type it anew")
    files = [arg for arg in args if "=" not in arg]
    if len(files) > 1 or any(f.startswith("-") for f in files):
        raise ConfigError(
            f"cannot read the arguments {files}: the form is "
            f"{command_of(job_name)} [CONFIG.yaml] [key.sub=value ...]"
        )
    shipped = shipped_values(job_name)
    own = _read_yaml(find_file(files[0])) if files else {}
    values = deepcopy(lay_over(config_class, shipped, own))
    overrides: Values = {}
    for path, value in _overrides(config_class, [arg for arg in args if "=" in arg]):
        set_value(values, path, value)
        set_value(overrides, path, value)
    return validate(config_class, values, gives_way=to_earlier([shipped, own, overrides]))


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def shipped_values(job_name: str) -> Values:
    """What the job's own file sets; nothing where it has none."""
    file = CONFIGS / f"{job_name}.yaml"
    return _read_yaml(file) if file.exists() else {}


def find_file(name: str) -> Path:
    """A configuration file: the user's own, or one of the package's by its name.

    Args:
        name: path of a file; where there is none, ``jobs/configs/serve_gpu.yaml``,
            ``serve_gpu.yaml`` and ``evaluate/bbh.yaml`` are the package's.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    shipped = CONFIGS / name.removeprefix("jobs/configs/")
    return shipped if shipped.exists() and ".." not in path.parts else path


def _read_yaml(path: Path) -> Values:
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist (overrides have the form key=value)")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = yaml_problem(error)
        raise ConfigError(f"config file {path} is not valid YAML: {problem}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config file {path} must hold a mapping of keys, not {type(values)}")
    return values or {}


def _overrides(config_class: type[BaseModel], args: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Pairs of key path and value, in order."""
    pairs: list[tuple[list[str], Any]] = []
    for arg in args:
        key, value = arg.lstrip("-").split("=", 1)
        path = key.split(".")
        if _is_free(config_class, path) or any(part.isdigit() for part in path):
            # Below a mapping, or an item of a list as in models.0.load.path: pydantic checks it.
            pairs.append((path, _parse_yaml(key, value)))
            continue
        field = find_field(config_class, path)
        if field is None:
            raise ConfigError(unknown_key(config_class, key, value))
        pairs.append((path, _parse_value(config_class, path, value, field)))
    return pairs


def _parse_yaml(key: str, value: str) -> Any:
    try:
        return parse_yaml(key, value)
    except OptionError as error:
        raise ConfigError(error) from None


def _parse_value(
    config_class: type[BaseModel], path: list[str], value: str, field: FieldInfo
) -> Any:
    """What a value of a field means: a structure is YAML, and a text for a list of texts is one."""
    key = ".".join(path)
    is_union = isinstance(field.annotation, UnionType)
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    is_mapping = section_of(field) is not None or any(get_origin(kind) is dict for kind in kinds)
    if is_mapping or (value.startswith("[") and str not in kinds):
        return _parse_yaml(key, value)
    if value != "null" and any(kind in (list[str], tuple[str, ...]) for kind in kinds):
        return [value]
    parsed = _parse_scalar(config_class, key, value)
    for part in path:
        parsed = parsed[part]
    return parsed


def _parse_scalar(config_class: type[BaseModel], key: str, value: str) -> Any:
    try:
        source = CliSettingsSource[Any](
            config_class,  # type: ignore[arg-type]
            cli_parse_args=[f"--{key}={value}"],
            cli_exit_on_error=False,
            cli_prog_name="job",
        )
        return source()
    except SettingsError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(OptionError(key, value, "cannot be read", reason)) from None


def _is_free(model: type[BaseModel], path: list[str]) -> bool:
    """Whether the path leads below a free-form mapping such as `deepspeed`."""
    free = (find_field(model, path[:depth]) for depth in range(1, len(path)))
    return any(field is not None and field.annotation == dict[str, Any] for field in free)
