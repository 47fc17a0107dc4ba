"""The tokenizer of a checkpoint directory, without asking to run code that lies there."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from a2d_ray.models.directories import find_directory, read_json, write_json
from a2d_ray.models.weights import one_line_errors

CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_OPTIONS = "template_options"


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of an A2D or AR checkpoint.

    transformers' AutoTokenizer would look into config.json, find `auto_map` and wait for somebody
    to allow the code; a fast tokenizer needs none of that.

    Args:
        path: local directory or Hub id.

    Raises:
        ValueError: there is no tokenizer.
    """
    return open_tokenizer(str(path), find_directory(str(path), weights=False))


def open_tokenizer(name: str, directory: Path, **options: Any) -> Any:
    """The tokenizer of a model directory.

    Args:
        name: the model, for the messages.
        directory: where its files lie.
        options: of transformers' loading, such as ``gguf_file``.

    Raises:
        ValueError: there is none, it is damaged, or it needs a package that is not installed.
    """
    held = {path.name for path in directory.glob("tokenizer*")}
    if not held and not options:  # transformers would make up an empty one
        raise ValueError(f"{name} holds no tokenizer: save the model's own there")
    if "tokenizer.model" in held and "tokenizer.json" not in held and not _has_sentencepiece():
        raise ValueError(
            f"{name} has its tokenizer in tokenizer.model, which needs sentencepiece: "
            "pip install sentencepiece, or save it as tokenizer.json with save_pretrained()"
        )
    with one_line_errors(f"the tokenizer of {name}"):
        tokenizer = _opened(directory, options)
    length = tokenizer.model_max_length
    if not isinstance(length, int | float):
        raise ValueError(f"{name}: model_max_length={length!r} in {CONFIG_FILE} is no number")
    if not isinstance(tokenizer.init_kwargs.get(_TEMPLATE_OPTIONS, {}), Mapping):
        raise ValueError(f"{name}: {_TEMPLATE_OPTIONS} in {CONFIG_FILE} must be an object")
    return tokenizer


def _opened(directory: Path, options: dict[str, Any]) -> Any:
    if read_json(directory, CONFIG_FILE).get("tokenizer_class") == "PreTrainedTokenizerFast":
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, **options)


def find_mask_id(directory: Path) -> int | None:
    """Id of the tokenizer's mask token, read from its files."""
    for file_name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(directory, file_name).get("mask_token")
        if token:
            break
    else:
        return None
    text = token["content"] if isinstance(token, dict) else token
    backend = read_json(directory, "tokenizer.json")
    added = {entry["content"]: entry["id"] for entry in backend.get("added_tokens") or ()}
    listed = read_json(directory, "tokenizer_config.json").get("added_tokens_decoder") or {}
    added |= {entry["content"]: int(key) for key, entry in listed.items()}
    added |= read_json(directory, "added_tokens.json")
    return added.get(text)


def save_tokenizer(directory: Path, tokenizer: Any) -> None:
    """Saves a tokenizer so that transformers 4.57 and 5 both read it."""
    tokenizer.save_pretrained(directory)
    path = directory / CONFIG_FILE
    values = read_json(directory, path.name)
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only"):  # how it was loaded, not what it is
        values.pop(key, None)
    if isinstance(values.get("extra_special_tokens"), list):  # 4.57 expects a mapping there
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    write_json(path, values)


def template_options(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer's chat template reads besides the messages unless a caller says otherwise:
    what the model was trained with. It lies in tokenizer_config.json."""
    return dict(tokenizer.init_kwargs.get(_TEMPLATE_OPTIONS) or {})


def with_template_options(tokenizer: Any, options: Mapping[str, Any]) -> Any:
    """The tokenizer, changed in place, with these options over those that it has."""
    if options:
        merged = template_options(tokenizer) | dict(options)
        tokenizer.init_kwargs[_TEMPLATE_OPTIONS] = merged
    return tokenizer


def _has_sentencepiece() -> bool:
    return importlib.util.find_spec("sentencepiece") is not None
