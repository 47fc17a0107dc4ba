"""The model that the suites measure: the shape of SmolLM2-135M, random weights, random inputs."""

from pathlib import Path
from typing import Any

import torch

from a2d_ray.models.architectures import find_architecture
from a2d_ray.models.checkpoint import save_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.planning.sizes import ModelSizes, find_sizes
from a2d_ray.text.language_model import LanguageModel

SIZES = find_sizes("package:smollm2")
MAX_LENGTH = 2_048


def mask_id() -> int:
    """The mask token: the last of the vocabulary; no random prompt holds it."""
    return SIZES.vocab - 1


def config_values(sizes: ModelSizes, max_length: int = MAX_LENGTH) -> dict[str, Any]:
    """Sizes in the names of a transformers configuration."""
    return {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": sizes.is_tied,
    }


def make_model(architecture: str, dtype: torch.dtype, seed: int, *, is_ar: bool = False) -> Any:
    """A model of `SIZES` with random weights; A2D, or its AR original."""
    row = find_architecture(architecture)
    assert row is not None
    import transformers

    config_class = getattr(transformers, f"{row.prefix}Config") if is_ar else row.config_class
    model_class = row.ar_model_class if is_ar else row.model_class
    torch.manual_seed(seed)
    return model_class(config_class(**config_values(SIZES), dtype=dtype)).to(dtype).eval()


def make_prompt(num_tokens: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, mask_id(), (num_tokens,), generator=generator).tolist()


def make_language_model(dtype: torch.dtype, seed: int, block_size: int) -> LanguageModel:
    """A Llama for block diffusion whose tokenizer has a word per token: w0, w1, ..."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(SIZES.vocab)}, "w0"))
    words.decoder = decoders.Fuse()
    return LanguageModel(
        make_model("llama", dtype, seed),
        PreTrainedTokenizerFast(tokenizer_object=words),
        Contract(objective="bd3lm", mask_token_id=mask_id(), block_size=block_size),
    )


def save_language_model(lm: LanguageModel, directory: Path) -> Path:
    """The model as a checkpoint, for servers in other processes; returns the directory."""
    save_checkpoint(directory, model=lm.model, tokenizer=lm.tokenizer, contract=lm.contract)
    return directory
