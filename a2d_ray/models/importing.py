"""Another project's diffusion checkpoint becomes an ordinary A2D checkpoint.

Nothing is trained and nothing of it is run: tensors are renamed, and the contract says how it was
trained (`foreign.FOREIGN_MODELS`). The mask token's rows stay as they were trained.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a2d_ray.models.checkpoint import save_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.models.directories import read_json
from a2d_ray.models.foreign import ForeignModel
from a2d_ray.models.sources import ModelSource, check_loading
from a2d_ray.models.tokenizers import CONFIG_FILE, open_tokenizer
from a2d_ray.models.weights import check_finite, fit_config, one_line_errors, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_WINDOWS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_BPE_FILES = ("vocab.json", "merges.txt")


def import_checkpoint(source: ModelSource, directory: Path, *, dtype: "torch.dtype") -> None:
    """Writes a foreign checkpoint as an A2D checkpoint with an objective.

    Args:
        source: what `find_source` found, with its `foreign` row.
        directory: an existing one; the checkpoint goes there.
        dtype: stored precision.

    Raises:
        ValueError: files that do not fit the row, by key or tensor name.
    """
    tokenizer = load_foreign_tokenizer(source)
    model, contract = load_foreign_model(source, dtype=dtype)
    _name_mask(tokenizer, contract.mask_token_id)
    length = model.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    _set_ends(model, _end_ids(source, tokenizer, model.config))
    save_checkpoint(directory, model=model, tokenizer=tokenizer, contract=contract)


def load_foreign_model(source: ModelSource, *, dtype: "torch.dtype") -> tuple[Any, Contract]:
    """The A2D model with a foreign checkpoint's weights, on the CPU, and its contract.

    Raises:
        ValueError: tensors that are missing, unexpected, of another shape or not finite, by name;
            a mask token without a row.
    """
    row = _row(source)
    values = read_json(source.directory, "config.json")
    row.check(source.name, values)
    config = _a2d_config(source, row, values)
    contract = row.contract_of(values).model_copy(
        update={"source": source.name, "source_revision": source.revision}
    )
    if contract.mask_token_id >= config.vocab_size:
        raise ValueError(
            f"the mask token of {source.name} has id {contract.mask_token_id}, and its embedding "
            f"{config.vocab_size} rows: set mask_token_id in its config.json"
        )
    with one_line_errors(source.name):
        model, info = row.architecture.model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(_weights(source, row, dtype)),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that check_loading() names them
        )
    check_loading(source.name, info)
    check_finite(source.name, model.state_dict())
    return model.eval(), contract


def load_foreign_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a foreign checkpoint, from its files alone.

    Its own class may be code beside the weights (Dream's is Qwen2's, renamed): it is not asked.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    directory = source.directory
    tokenizer = None
    with one_line_errors(f"the tokenizer of {source.name}"):
        if (directory / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        elif all((directory / name).is_file() for name in _BPE_FILES):
            tokenizer = Qwen2Tokenizer.from_pretrained(directory)
    if tokenizer is None:
        return open_tokenizer(source.name, directory)
    _check_added(source, tokenizer)
    return tokenizer


def _check_added(source: ModelSource, tokenizer: Any) -> None:
    """Refuses a tokenizer that gives a special token another id than its files say."""
    added = read_json(source.directory, CONFIG_FILE).get("added_tokens_decoder") or {}
    for key, entry in added.items():
        found = tokenizer.get_vocab().get(entry["content"])
        if found != int(key):
            raise ValueError(
                f"the tokenizer of {source.name} gives {entry['content']} the id {found}, and "
                f"{CONFIG_FILE} says {key}: save it as tokenizer.json with save_pretrained()"
            )


def _row(source: ModelSource) -> ForeignModel:
    assert source.foreign is not None
    return source.foreign


def _a2d_config(source: ModelSource, row: ForeignModel, values: dict[str, Any]) -> Any:
    """The A2D configuration, of what the AR architecture's own configuration knows."""
    config_class = row.architecture.config_class
    known = config_class().to_dict().keys() | {"rope_theta", "rope_scaling"}
    dropped = {"model_type", "architectures", "dtype", "torch_dtype", *_WINDOWS}
    with one_line_errors(f"config.json of {source.name}"):
        translated = row.translate(values)
        kept = {k: v for k, v in translated.items() if k in known - dropped and v is not None}
        config = config_class(**kept)
    tied = row.architecture.model_class._tied_weights_keys
    return fit_config(source.name, config, source.directory, tied)


def _weights(
    source: ModelSource, row: ForeignModel, dtype: "torch.dtype"
) -> "Iterator[tuple[str, Tensor]]":
    """Its tensors under our names."""
    from safetensors.torch import load_file

    for path in weight_files(source.name, source.directory):
        for key, tensor in load_file(path).items():
            name = row.tensor_name(key)
            if name is not None:
                yield name, tensor.to(dtype)


def _name_mask(tokenizer: Any, mask_id: int) -> None:
    """Makes the token of the mask's id the tokenizer's mask token, or none where it has no text."""
    text = tokenizer.convert_ids_to_tokens(mask_id)
    if text:
        tokenizer.add_special_tokens({"mask_token": text})
    elif tokenizer.mask_token is not None:
        tokenizer.mask_token = None


def _end_ids(source: ModelSource, tokenizer: Any, config: Any) -> list[int]:
    """Ids that end an answer: of its three files, and the ends that the row names."""
    generation = read_json(source.directory, "generation_config.json")
    found: set[Any] = set()
    for value in (config.eos_token_id, generation.get("eos_token_id"), tokenizer.eos_token_id):
        found |= set(value if isinstance(value, list) else [value])
    vocabulary = tokenizer.get_vocab()
    found |= {vocabulary[text] for text in _row(source).ends if text in vocabulary}
    return sorted(i for i in found if isinstance(i, int) and 0 <= i < config.vocab_size)


def _set_ends(model: Any, ids: list[int]) -> None:
    value = ids if len(ids) > 1 else next(iter(ids), None)
    model.config.eos_token_id = value
    if model.generation_config is not None:
        model.generation_config.eos_token_id = value
