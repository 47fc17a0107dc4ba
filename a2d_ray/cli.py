"""The one command-line form: ``python jobs/X.py [CONFIG.yaml] [key.sub=value ...]``.

pydantic-settings parses the values and writes ``--help``; this file adds the form, the YAML file
underneath and errors that name the key, the value and the fix. It imports neither torch nor Ray.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import CliSettingsSource, SettingsError

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key, the value and the fix."""


def load_config(
    config_class: type[Config], job_name: str, argv: Sequence[str] | None = None
) -> Config:
    """Reads a job's configuration from its YAML file and the command line.

    Args:
        config_class: the pydantic model to fill.
        job_name: name of the job; ``jobs/configs/<job_name>.yaml`` is the default file.
        argv: arguments; None: the process's own.

    Returns:
        The frozen configuration. ``--help`` and ``--dry-run`` print and exit with 0.

    Raises:
        ConfigError: an unknown key, a bad value, an unreadable file.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "--help" in args or "-h" in args:
        _print_help(config_class, job_name)
        raise SystemExit(0)
    is_dry_run = "--dry-run" in args
    args = [arg for arg in args if arg != "--dry-run"]
    config = parse_config(config_class, job_name, args)
    if is_dry_run:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def parse_config(config_class: type[Config], job_name: str, args: Sequence[str]) -> Config:
    """The configuration for these arguments; see `load_config`."""
    files = [arg for arg in args if "=" not in arg]
    if len(files) > 1 or any(f.startswith("-") for f in files):
        raise ConfigError(
            f"cannot read the arguments {files}: the form is "
            f"python jobs/{job_name}.py [CONFIG.yaml] [key.sub=value ...]"
        )
    values = _read_yaml(Path(files[0])) if files else _default_values(job_name)
    for key, value in _overrides(config_class, [arg for arg in args if "=" in arg]):
        _set(values, key, value)
    return validate(config_class, values)


def validate(config_class: type[Config], values: dict[str, Any]) -> Config:
    """`values` as a frozen configuration.

    Raises:
        ConfigError: one line per problem, naming key, value and fix.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(config_class, problem) for problem in error.errors())
        raise ConfigError("\n".join(lines)) from None


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def run(main: Callable[[], None]) -> None:
    """Runs a job; a user's mistake becomes one clear message and exit code 2."""
    try:
        main()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from (None if isinstance(error, ConfigError) else error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def _default_values(job_name: str) -> dict[str, Any]:
    main_file = getattr(sys.modules["__main__"], "__file__", None) or "jobs/x.py"
    beside_job = Path(main_file).resolve().parent / "configs" / f"{job_name}.yaml"
    in_tree = Path(__file__).resolve().parent.parent / "jobs" / "configs" / f"{job_name}.yaml"
    return _read_yaml(beside_job if beside_job.exists() else in_tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist (overrides have the form key=value)")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config file {path} must hold a mapping of keys, not {type(values)}")
    return values or {}


def _overrides(config_class: type[BaseModel], args: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Pairs of key path and value, in order."""
    pairs: list[tuple[list[str], Any]] = []
    for arg in args:
        key, value = arg.lstrip("-").split("=", 1)
        path = key.split(".")
        if _inside_free_section(config_class, path) or any(part.isdigit() for part in path):
            # Below a mapping, or an item of a list as in models.0.load.path: pydantic checks it.
            pairs.append((path, yaml.safe_load(value)))
            continue
        _check_key(config_class, path)
        parsed = _parse_value(config_class, key, value)
        for part in path:
            parsed = parsed[part]
        pairs.append((path, parsed))
    return pairs


def _parse_value(config_class: type[BaseModel], key: str, value: str) -> dict[str, Any]:
    try:
        source = CliSettingsSource[Any](
            config_class,  # type: ignore[arg-type]
            cli_parse_args=[f"--{key}={value}"],
            cli_exit_on_error=False,
            cli_prog_name="job",
        )
        return source()
    except SettingsError as error:
        raise ConfigError(f"{key}: cannot read {value!r}: {error}") from None


def _set(values: Any, path: list[str], value: Any) -> None:
    """Puts a value where the path leads; missing mappings are made, list items must be there."""
    for depth, part in enumerate(path[:-1]):
        if isinstance(values, list):
            values = _item(values, path, depth)
            continue
        if not isinstance(values.get(part), dict | list):
            values[part] = {}
        values = values[part]
    values[path[-1]] = value


def _item(values: list[Any], path: list[str], depth: int) -> Any:
    key = ".".join(path[:depth])
    part = path[depth]
    if not part.isdigit() or int(part) >= len(values):
        raise ConfigError(f"{key}.{part}: {key} has the items 0 to {len(values) - 1}")
    return values[int(part)]


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return dict(model.model_fields)


def _submodel(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, or may hold."""
    is_union = isinstance(field.annotation, UnionType)
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _inside_free_section(model: type[BaseModel], path: list[str]) -> bool:
    """Whether the path leads below a free-form mapping such as `deepspeed`."""
    field = _fields(model).get(path[0])
    return len(path) > 1 and field is not None and field.annotation == dict[str, Any]


def _check_key(model: type[BaseModel], path: list[str]) -> None:
    current: type[BaseModel] | None = model
    for part in path:
        if current is None or part not in _fields(current):
            raise ConfigError(_unknown_key(model, path))
        current = _submodel(_fields(current)[part])


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in _fields(model).items():
        keys.append(prefix + name)
        if (inner := _submodel(field)) is not None:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _unknown_key(model: type[BaseModel], path: Sequence[Any]) -> str:
    key = ".".join(map(str, path))
    known = _all_keys(model)
    last = str(path[-1])
    near = difflib.get_close_matches(key, known, n=1) or [
        k for k in known if k.rsplit(".", 1)[-1] == last
    ]
    hint = f"did you mean {near[0]}?" if near else "see --help for the keys"
    return f"unknown key {key}: {hint}"


def _explain(model: type[BaseModel], problem: Any) -> str:
    path = [part for part in problem["loc"] if str(part).isidentifier() or isinstance(part, int)]
    path = [part for part in path if part not in ("bool", "int", "float", "str")]  # union branches
    key = ".".join(map(str, path))
    if problem["type"] == "extra_forbidden":
        return _unknown_key(model, path)
    if problem["type"] == "missing":
        return f"{key} is missing: set it in the YAML file or as {key}=VALUE"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _print_help(config_class: type[BaseModel], job_name: str) -> None:
    lines = [
        f"usage: python jobs/{job_name}.py [CONFIG.yaml] [key.sub=value ...] [--dry-run] [--help]",
        "",
        (config_class.__doc__ or "").strip(),
        f"Default CONFIG.yaml: jobs/configs/{job_name}.yaml. --dry-run prints the resolved config.",
    ]
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.write("\n".join(_help_lines(config_class)) + "\n")


def _help_lines(model: type[BaseModel], prefix: str = "") -> list[str]:
    lines = []
    for name, field in _fields(model).items():
        if (inner := _submodel(field)) is not None:
            title = f"{prefix}{name}: {field.description or ''}".rstrip()
            lines += ["", title, *_help_lines(inner, f"{prefix}{name}.")]
            continue
        default = (
            "required"
            if field.is_required()
            else repr(field.get_default(call_default_factory=True))
        )
        lines.append(f"  {prefix}{name}={_type_name(field)}  (default: {default})")
        lines.append(f"      {field.description or ''}")
    return lines


def _type_name(field: FieldInfo) -> str:
    name = getattr(field.annotation, "__name__", None)
    if name is None or "[" in str(field.annotation):
        name = str(field.annotation)
    return name.replace("typing.", "").replace("Literal", "").replace("NoneType", "none")
