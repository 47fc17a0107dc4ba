"""What tells a model from every other one: equal fingerprints give equal answers."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch

from a2d_ray import __version__
from a2d_ray.models.contract import Contract
from a2d_ray.models.tokenizers import template_options

_OF_NO_MATTER = ("_name_or_path", "transformers_version")  # keys of config.json


def fingerprint(
    model: Any, tokenizer: Any, contract: Contract, *, eos_token_ids: Iterable[int], weights: str
) -> dict[str, Any]:
    """Everything that an answer depends on besides its request, as JSON values.

    Args:
        model: the A2D model.
        tokenizer: its tokenizer, or None.
        contract: how it is used.
        eos_token_ids: ids that end an answer.
        weights: `weights_hash` of the model.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _OF_NO_MATTER}
    return {
        "weights": weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "config": values_hash(config),
        "contract": contract.model_dump(mode="json"),
        "eos_token_ids": sorted(eos_token_ids),
        "tokenizer": tokenizer_hash(tokenizer),
        "a2d_ray": __version__,
    }


def values_hash(values: Any) -> str:
    """SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def weights_hash(model: Any) -> str:
    """SHA-256 over names, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(dtype=torch.uint8).numpy()) if flat.numel() else b"")
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 over vocabulary, rules, chat template and its options; None without a tokenizer."""
    if tokenizer is None:
        return None
    text = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else repr(sorted(tokenizer.get_vocab().items()))
    )
    options = template_options(tokenizer)
    text += str(tokenizer.chat_template) + (values_hash(options) if options else "")
    return hashlib.sha256(text.encode()).hexdigest()
