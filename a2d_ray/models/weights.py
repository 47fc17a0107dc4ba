"""Weight files of a model directory: whole or not, what they hold, what they make of its config.

Headers are read without torch. Where the files and ``config.json`` disagree, the tensors decide.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a2d_ray.models.directories import INDEX_FILE, WEIGHTS_FILE, read_json

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"  # of the known architectures
HEAD = "lm_head.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_log = logging.getLogger(__name__)


def check_weights(name: str, directory: Path) -> None:
    """Checks that the safetensors weights of a directory are there, whole and floating-point.

    Raises:
        ValueError: they are not; names the file or the tensor.
    """
    files = weight_files(name, directory)
    if not files:
        raise ValueError(f"{name} has no weights: expected {WEIGHTS_FILE} or {INDEX_FILE}")
    read_json(directory, "generation_config.json")  # transformers forgets a damaged one: the ends
    num_tensors = 0
    for path, expected in files.items():
        held = _tensor_types(path)
        num_tensors += len(held)
        if missing := sorted(expected - set(held)):
            raise ValueError(f"{path} lacks {_few(missing)}, which {INDEX_FILE} says it holds")
        if other := sorted(key for key, kind in held.items() if kind not in _FLOATS):
            raise ValueError(
                f"{path}: {other[0]} is of type {held[other[0]]}, where a float belongs: use the "
                "model that is not quantized"
            )
    _check_depth(name, directory, num_tensors)


def _check_depth(name: str, directory: Path, num_tensors: int) -> None:
    """Refuses more layers than there are tensors, before anybody builds them."""
    config = read_json(directory, "config.json")
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        depth = config.get(key)
        if isinstance(depth, int) and depth > num_tensors:
            raise ValueError(
                f"the weights of {name} do not fit its config.json: {key}={depth}, and they hold "
                f"{num_tensors} tensors"
            )


def weight_files(name: str, directory: Path) -> dict[Path, set[str]]:
    """The weight files of a directory, each with the tensors that its index says it holds.

    Raises:
        ValueError: an index that names no files, or files that are not there.
    """
    if (directory / WEIGHTS_FILE).is_file():
        return {directory / WEIGHTS_FILE: set()}
    if not (directory / INDEX_FILE).is_file():
        return {}
    places = read_json(directory, INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_is_file_name, places.values())):
        raise ValueError(f"{directory / INDEX_FILE} has no weight_map of tensors and files")
    files: dict[Path, set[str]] = {}
    for key, file_name in places.items():
        files.setdefault(directory / file_name, set()).add(key)
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise ValueError(f"{name} lacks {_few(missing)}, which {INDEX_FILE} names: fetch it again")
    return files


def fit_config(
    name: str, config: Any, directory: Path, tied: Mapping[str, str] | None = None
) -> Any:
    """A transformers configuration as its weights demand; says what it changes.

    Args:
        name: the model, for the messages.
        config: changed in place.
        directory: its weights; none for a packaged model.
        tied: names of the tensors that are one where they are tied, the head's first.

    Returns:
        `config`.
    """
    drop_foreign_ids(name, config, config.vocab_size)
    if not config.tie_word_embeddings:
        return config
    for head, embedding in (tied or {}).items():
        if _has_two_tables(name, directory, (embedding, head)):
            _log.warning(
                "%s: config.json says tie_word_embeddings, but %s and %s differ: they stay apart",
                name,
                embedding,
                head,
            )
            config.tie_word_embeddings = False
    return config


def drop_foreign_ids(name: str, config: Any, num_rows: int) -> None:
    """Forgets special ids that the embedding has no row for; says so."""
    for key in _SPECIAL_IDS:
        value = getattr(config, key, None)
        ids = value if isinstance(value, list) else [value]
        kept = [i for i in ids if isinstance(i, int) and 0 <= i < num_rows]
        if value is None or kept == ids:
            continue
        _log.warning("%s: %s=%s is outside the %s rows: dropped", name, key, value, num_rows)
        setattr(config, key, kept if isinstance(value, list) and kept else None)


def check_finite(name: str, weights: "Mapping[str, Tensor]") -> None:
    """Refuses weights that are NaN or infinite.

    Raises:
        ValueError: names the tensors.
    """
    import torch

    wrong = []
    for key, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
            continue
        if not torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all():
            wrong.append(key)
    if wrong:
        raise ValueError(f"{name} holds NaN or infinity in {_few(wrong)}: it cannot be used")


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """What libraries raise over the files of a model, as a ValueError of one line.

    A configuration that cannot be built fails in many ways (keys, types, divisions, assertions),
    and tokenizers raises bare exceptions.
    """
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or "no reason given"
        is_plain = isinstance(error, OSError | SafetensorError | ValueError)
        kind = "" if is_plain else f"{type(error).__name__}: "
        raise ValueError(f"{name} cannot be loaded: {kind}{text}") from error


def _tensor_types(path: Path) -> dict[str, str]:
    """Types of the tensors of a file, by name; the file's length is checked against its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _has_two_tables(name: str, directory: Path, names: tuple[str, str]) -> bool:
    """Whether the files hold both of an embedding and a head, and they differ."""
    import torch
    from safetensors import safe_open

    tables: dict[str, torch.Tensor] = {}
    for path in weight_files(name, directory):
        with safe_open(path, framework="pt") as file:
            for key in set(names) & set(file.keys()):
                tables[key] = file.get_tensor(key)
    return len(tables) == 2 and not torch.equal(*tables.values())


def _is_file_name(value: Any) -> bool:
    """Whether a value names a file beside the index, and none elsewhere."""
    return isinstance(value, str) and Path(value).name == value != ""


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
