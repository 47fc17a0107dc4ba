"""LoRA adapters through peft: added to a model, restored, merged.

The mask token's embedding is trained too: an AR model has never seen it.

Source: LoRA, arXiv 2106.09685; QLoRA, 2305.14314.
"""

import copy
from pathlib import Path
from typing import Any

from a2d_ray.config import LoraSection

ADAPTER_WEIGHTS = "adapter_model.safetensors"
GATED_WEIGHTS = "gated_adapters.safetensors"


def add_adapters(model: Any, lora: LoraSection, *, mask_id: int, base: str, seed: int = 0) -> Any:
    """Puts adapters into a model's linear layers and freezes the rest but the mask token's row.

    Args:
        model: A2D model, changed in place.
        lora: rank, scale, dropout, layers.
        mask_id: row of the embedding that is trained.
        base: path or Hub id that the adapters belong to.
        seed: of their first values.

    Returns:
        peft's view of the model, for `save_adapters` and `restore_adapters`.

    Raises:
        ValueError: `targets` that the model does not have.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from a2d_ray.models.parts import embedding_name, output_name

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=[output_name(model)],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        trainable_token_indices={embedding_name(model).rpartition(".")[2]: [mask_id]},
        base_model_name_or_path=base,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"model.lora.targets={lora.targets}: {error}") from error


def write_adapters(adapted: Any, file: Path) -> None:
    """Writes the adapters of a model, and the mask token's row."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(adapted)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        file,
        metadata={"format": "pt"},
    )
    file.chmod(0o644)  # safetensors writes 0o600


def restore_adapters(adapted: Any, file: Path) -> None:
    """Puts adapters that were written into a model that has some of the same shape."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result: Any = set_peft_model_state_dict(adapted, load_file(file))
    if result.unexpected_keys:
        raise ValueError(f"{file} has adapters that do not fit: {result.unexpected_keys}")


def plain_weights(model: Any, *, keep_vars: bool = False) -> dict[str, Any]:
    """The weights of a model by the plain model's names, adapters left out.

    Args:
        model: with or without adapters.
        keep_vars: the parameters themselves, which shared ones can be told by.
    """
    return {
        name.replace(".base_layer", "").replace(".token_adapter", ""): tensor
        for name, tensor in model.state_dict(keep_vars=keep_vars).items()
        if ".lora_" not in name and ".trainable_tokens_" not in name
    }


def is_one_table(model: Any) -> bool:
    """Whether a model's embedding and head are one parameter, whatever its configuration says."""
    from a2d_ray.models.parts import embedding_name, output_name

    variables = plain_weights(model, keep_vars=True)
    tables = (f"{name(model)}.weight" for name in (embedding_name, output_name))
    return len({id(variables[table]) for table in tables}) == 1


def merged_copy(adapted: Any) -> Any:
    """A copy of the model behind peft's view, its adapters merged; the model stays as it is."""
    return copy.deepcopy(adapted).merge_and_unload()


def with_adapters_merged(model: Any, directory: Path) -> Any:
    """A base model with the adapters of a checkpoint added to its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(directory)).merge_and_unload()
