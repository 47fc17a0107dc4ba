"""Why a checkpoint would be decoded otherwise elsewhere than it was trained. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from a2d_ray.config.commands import command_of
from a2d_ray.models.contract import Contract
from a2d_ray.models.directories import ADAPTER_CONFIG

ROW_MULTIPLE = 64  # rows of an embedding are added up to the next multiple

_NEEDED: dict[str, Any] = {"clean_attention": "block", "right_shift_logits": False}


def sdar_refusals(
    directory: Path, config: Mapping[str, Any], contract: Contract, *, has_objective: bool
) -> list[str]:
    """What keeps a checkpoint out of SDAR's format; empty: nothing.

    Args:
        directory: of the checkpoint.
        config: its config.json.
        contract: how it is used, overrides included.
        has_objective: whether its contract or the user said what it was trained for.
    """
    found = []
    if config.get("model_type") != "a2d-qwen3":
        found.append(
            f"its architecture is {config.get('model_type')}: SDAR is Qwen3, with norms of each "
            "head's queries and keys, which others lack"
        )
    if contract.gated_adapters is not None:
        found.append("it holds gated adapters (model.lora.noised_only): they cannot be merged")
    elif (directory / ADAPTER_CONFIG).is_file():
        found.append(f"it holds adapters: merge them first with {command_of('merge_lora')}")
    if not any(directory.glob("tokenizer*")):
        found.append("it holds no tokenizer: save the model's own there")
    if not has_objective:
        found.append(
            "it has no contract: say model.objective=bd3lm if it was trained so, and "
            "model.block_size if not with 32"
        )
        return found
    return found + _training_refusals(contract)


def _training_refusals(contract: Contract) -> list[str]:
    """What of the training these servers do not decode."""
    if contract.objective is None:
        return [f"it is converted but not trained: train it with {command_of('sft_bd3lm')}"]
    if contract.objective != "bd3lm":
        return [f"its objective is {contract.objective}: train with {command_of('sft_bd3lm')}"]
    grid = contract.training_grid or contract.block_grid
    found = []
    if grid != "absolute":
        found.append(
            f"its blocks start by block_grid={grid}, theirs at token 0: train with "
            "objective.block_grid=absolute"
        )
    for key, value in _NEEDED.items():
        held = getattr(contract, key)
        if held != value:
            wanted = str(value).lower()
            found.append(f"its {key} is {held}: train with objective.{key}={wanted}")
    return found


def mask_refusals(num_rows: int, tokens: Mapping[str, int], *, old: int, new: int) -> list[str]:
    """What keeps the mask token from moving from id `old` to `new`.

    Args:
        num_rows: rows of the embedding.
        tokens: the tokenizer's vocabulary.
        old: id of the mask token.
        new: id that the servers take for the mask.
    """
    if new == old:
        return []
    taken = next((text for text, token_id in tokens.items() if token_id == new), None)
    if taken is not None:
        return [f"id {new}, which these servers take for the mask, is the token {taken!r}"]
    if new >= padded_rows(num_rows):
        return [
            f"id {new}, which these servers take for the mask, lies beyond its {num_rows} rows: "
            "rows that are added would compete with its tokens. mask_id="
            f"{old} keeps its own, for JetEngine alone"
        ]
    return []


def padded_rows(num_rows: int) -> int:
    """The next multiple of `ROW_MULTIPLE`."""
    return -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE
