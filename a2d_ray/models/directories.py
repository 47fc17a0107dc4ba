"""Model directories: local ones, and the Hub's through its client. Imports no torch."""

import json
import re
from pathlib import Path
from typing import Any

from a2d_ray.config.commands import command_of

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_QUICKSTART = "runs/quickstart/"  # what the jobs' own files name
_HUB_TIMEOUT_S = 5
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_MODEL_FILES = [*_SMALL_FILES, "*.safetensors"]
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def find_directory(name: str, *, revision: str | None = None, weights: bool) -> Path:
    """The local directory of a model; fetches a Hub id's files.

    Args:
        name: local directory or Hub id.
        revision: branch, tag or commit of a Hub id.
        weights: whether the weights of a Hub id are needed, or only its small files.

    Raises:
        ValueError: neither a directory nor a Hub id that can be had; no config.json.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ValueError(f"{name} has no config.json: it is not a model directory")
        return directory
    if directory.exists():
        raise ValueError(f"{name} is a file: give the model's directory")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise _missing(name)
    return _fetch(name, revision, weights)


def _missing(name: str) -> ValueError:
    """The error for a directory that is not there; what makes it, where that is known."""
    is_quickstart = _QUICKSTART in Path(name).as_posix()
    fix = f": run {command_of('quickstart')}, or name a model (model.path=...)"
    return ValueError(f"model directory {name} does not exist{fix if is_quickstart else ''}")


def read_json(directory: Path, file_name: str) -> dict[str, Any]:
    """A JSON file of a model directory; empty if it is not there.

    Raises:
        ValueError: the file is no JSON object.
    """
    path = directory / file_name
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file of a model directory."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def find_base(name: str, directory: Path) -> str | None:
    """The base model that an adapter checkpoint names; None: the directory holds no adapters.

    Raises:
        ValueError: adapters that name no base.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    base = read_json(directory, ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{name}: {ADAPTER_CONFIG} names no base_model_name_or_path")
    _check_no_circle(name, directory)
    return str(base)


def _check_no_circle(name: str, directory: Path) -> None:
    """Refuses adapters whose bases are adapters of each other."""
    seen: list[Path] = []
    place = directory
    while (place / ADAPTER_CONFIG).is_file():
        if place.resolve() in seen:
            raise ValueError(f"{name}: the base in its {ADAPTER_CONFIG} leads back to {place}")
        seen.append(place.resolve())
        base = read_json(place, ADAPTER_CONFIG).get("base_model_name_or_path")
        place = Path(str(base)).expanduser()


def file_stamps(name: str) -> dict[str, str]:
    """What tells versions of a model apart, without reading its weights: size and time of each
    file that loading reads, those of the base of adapters too; of a Hub id, its commit.

    Raises:
        ValueError: as for `find_directory`.
    """
    directory = find_directory(name, weights=False)
    if not Path(name).expanduser().is_dir():
        return {"revision": directory.name}
    paths = {path for pattern in _MODEL_FILES for path in directory.glob(pattern)}
    found = {}
    for path in sorted(paths):
        stat = path.stat()
        found[path.name] = f"{stat.st_size}-{stat.st_mtime_ns}"
    base = find_base(name, directory)
    of_base = {} if base is None else file_stamps(base)
    return found | {f"base/{key}": stamp for key, stamp in of_base.items()}


def _fetch(name: str, revision: str | None, weights: bool) -> Path:
    """Fetches a Hub model. One short request comes first: the client's own retries take long."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = _MODEL_FILES if weights else _SMALL_FILES
    is_online = True
    problem = ""
    try:
        url = hf_hub_url(name, "config.json", revision=revision)
        get_hf_file_metadata(url, timeout=_HUB_TIMEOUT_S)
    except RevisionNotFoundError:
        raise ValueError(f"Hub model {name} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"there is no directory {name}, and no model of that name on the Hub (or it is "
            "private: log in with `hf auth login`)"
        ) from None
    except EntryNotFoundError:
        raise ValueError(f"Hub model {name} has no config.json") from None
    except (HTTPError, OSError) as error:
        is_online = False
        problem = str(error)
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=not is_online
            )
        )
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"there is no directory {name}, and the Hub model of that name cannot be fetched: "
            f"{problem or error}"
        ) from error
