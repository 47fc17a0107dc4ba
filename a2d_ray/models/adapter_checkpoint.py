"""Adapter checkpoints on disk: saved beside their base's name, merged with it, or gated.

An adapter checkpoint is a directory with config.json (and the contract), the tokenizer and peft's
two files; `load_checkpoint` loads its base and merges them, so it is used like any other. One with
gated adapters holds its base's weights as well, and is never merged (`gated_lora`).
"""

from pathlib import Path
from typing import Any, Literal

from a2d_ray.models.adapters import ADAPTER_WEIGHTS, GATED_WEIGHTS, plain_weights, write_adapters
from a2d_ray.models.checkpoint import (
    load_checkpoint,
    read_contract,
    save_checkpoint,
    save_description,
)
from a2d_ray.models.contract import Contract
from a2d_ray.models.directories import ADAPTER_CONFIG
from a2d_ray.models.outputs import written_beside


def save_adapters(directory: Path, adapted: Any, *, tokenizer: Any, contract: Contract) -> None:
    """Writes an adapter checkpoint; the base's weights are not in it."""
    save_description(
        directory, model=adapted.get_base_model(), tokenizer=tokenizer, contract=contract
    )
    adapted.peft_config["default"].save_pretrained(directory)
    write_adapters(adapted, directory / ADAPTER_WEIGHTS)


def save_gated(
    directory: Path, model: Any, adapted: Any, *, tokenizer: Any, contract: Contract
) -> None:
    """Writes a checkpoint of its own: the frozen weights, and the gated adapters beside them."""
    weights = plain_weights(model)
    save_checkpoint(
        directory, model=model, tokenizer=tokenizer, contract=contract, state_dict=weights
    )
    write_adapters(adapted, directory / GATED_WEIGHTS)


def merge_adapters(
    source: str,
    output: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    overwrite: bool = False,
) -> Path:
    """Writes an adapter checkpoint and its base as one plain A2D checkpoint.

    Args:
        source: adapter checkpoint.
        output: directory to write; it appears when complete.
        dtype: stored precision.
        overwrite: replace an `output` that is a model directory.

    Returns:
        `output`.

    Raises:
        ValueError: what is wrong and the fix.
    """
    import torch

    output = Path(output).expanduser()
    if read_contract(source).gated_adapters is not None:
        raise ValueError(
            f"source {source} holds gated adapters (model.lora.noised_only): merged they would act "
            "at clean tokens too and change its AR mode: use the checkpoint as it is"
        )
    if not (Path(source).expanduser() / ADAPTER_CONFIG).is_file():
        raise ValueError(f"source {source} has no {ADAPTER_CONFIG}: it holds no adapters to merge")
    with written_beside(output, source, overwrite=overwrite) as directory:
        loaded = load_checkpoint(source, dtype=torch.float32, device="cpu")
        save_checkpoint(
            directory,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            contract=loaded.contract,
            dtype=getattr(torch, dtype),
        )
    return output
