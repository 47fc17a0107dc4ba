"""LoRA adapters through peft: added, saved beside their base's name, loaded merged.

An adapter checkpoint is a directory with config.json (and the contract), the tokenizer and peft's
two files; `load_checkpoint` loads its base and merges them, so it is used like any other.
The mask token's embedding is trained too: an AR model has never seen it.

Source: LoRA, arXiv 2106.09685; QLoRA, 2305.14314.
"""

import copy
from pathlib import Path
from typing import Any, Literal

from a2d_ray.config import LoraSection
from a2d_ray.models.checkpoint import load_checkpoint, save_checkpoint, save_description
from a2d_ray.models.contract import Contract
from a2d_ray.models.directories import ADAPTER_CONFIG
from a2d_ray.models.outputs import check_output, written_beside

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapters(model: Any, lora: LoraSection, *, mask_id: int, base: str) -> Any:
    """Puts adapters into a model's linear layers and freezes the rest but the mask token's row.

    Args:
        model: A2D model, changed in place.
        lora: rank, scale, dropout, layers.
        mask_id: row of the embedding that is trained.
        base: path or Hub id that the adapters belong to.

    Returns:
        peft's view of the model, for `save_adapters` and `restore_adapters`.

    Raises:
        ValueError: `targets` that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=["lm_head"],
        trainable_token_indices={"embed_tokens": [mask_id]},
        base_model_name_or_path=base,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"model.lora.targets={lora.targets}: {error}") from error


def save_adapters(directory: Path, adapted: Any, *, tokenizer: Any, contract: Contract) -> None:
    """Writes an adapter checkpoint; the base's weights are not in it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    save_description(
        directory, model=adapted.get_base_model(), tokenizer=tokenizer, contract=contract
    )
    adapted.peft_config["default"].save_pretrained(directory)
    weights = get_peft_model_state_dict(adapted)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        directory / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    (directory / ADAPTER_WEIGHTS).chmod(0o644)


def restore_adapters(adapted: Any, directory: Path) -> None:
    """Puts the adapters of a checkpoint into a model that has some of the same shape."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result: Any = set_peft_model_state_dict(adapted, load_file(directory / ADAPTER_WEIGHTS))
    if result.unexpected_keys:
        raise ValueError(f"{directory} has adapters that do not fit: {result.unexpected_keys}")


def merged_copy(adapted: Any) -> Any:
    """A copy of the model behind peft's view, its adapters merged; the model stays as it is."""
    return copy.deepcopy(adapted).merge_and_unload()


def with_adapters_merged(model: Any, directory: Path) -> Any:
    """A base model with the adapters of a checkpoint added to its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(directory)).merge_and_unload()


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
    check_output(output, source, overwrite)
    if not (Path(source).expanduser() / ADAPTER_CONFIG).is_file():
        raise ValueError(f"source {source} has no {ADAPTER_CONFIG}: it holds no adapters to merge")
    loaded = load_checkpoint(source, dtype=torch.float32, device="cpu")
    with written_beside(output) as directory:
        save_checkpoint(
            directory,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            contract=loaded.contract,
            dtype=getattr(torch, dtype),
        )
    return output
