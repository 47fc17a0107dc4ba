"""A2D checkpoints on disk: check, load, save. Checking loads neither torch nor transformers."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from a2d_ray import __version__
from a2d_ray.config import BlockGrid, CleanAttention, Objective
from a2d_ray.config.commands import command_of
from a2d_ray.models import architectures
from a2d_ray.models.adapters import (
    GATED_WEIGHTS,
    is_one_table,
    plain_weights,
    restore_adapters,
    with_adapters_merged,
)
from a2d_ray.models.architectures import Architecture, find_architecture
from a2d_ray.models.contract import Contract
from a2d_ray.models.descriptions import (
    CONTRACT_KEY,
    MODELING_FILE,
    config_values,
    generation_values,
)
from a2d_ray.models.directories import find_base, find_directory, read_json, write_json
from a2d_ray.models.sources import check_loading
from a2d_ray.models.tokenizers import find_mask_id, open_tokenizer, save_tokenizer
from a2d_ray.models.weights import (
    check_finite,
    check_weights,
    drop_foreign_ids,
    fit_config,
    one_line_errors,
)

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded A2D checkpoint.

    Attributes:
        model: the bidirectional model in eval mode (`.model` is the backbone, `.lm_head` the head).
        tokenizer: transformers tokenizer, or None if the directory has none.
        contract: how the model must be used.
    """

    model: Any
    tokenizer: Any
    contract: Contract


def read_contract(
    path: str | Path,
    *,
    mask_token_id: int | None = None,
    objective: Objective | None = None,
    block_size: int | None = None,
    block_grid: BlockGrid | None = None,
    clean_attention: CleanAttention | None = None,
    right_shift_logits: bool | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> Contract:
    """The contract of a checkpoint, with overrides.

    Args:
        path: local directory or Hub id.
        mask_token_id: replaces the contract's; None: no override. Likewise the others.
        objective: mdlm or bd3lm.
        block_size: tokens per block.
        block_grid: where blocks start.
        clean_attention: how clean tokens see each other inside a block.
        right_shift_logits: whether the logit at i-1 predicts token i.
        eos_token_ids: ids that end an answer, besides those of tokenizer and configuration.

    Returns:
        The contract. A directory of the public A2D format that has none counts as bd3lm, block
        32, grid ``prompt_end`` (as the public sampler has it; trained on ``absolute``), mask = the
        tokenizer's mask token.

    Raises:
        ValueError: not an A2D checkpoint; a contract that does not fit; no known mask token.
    """
    directory = find_directory(str(path), weights=False)
    config = read_json(directory, "config.json")
    _a2d_architecture(path, config)
    overrides = {
        "mask_token_id": mask_token_id,
        "objective": objective,
        "block_size": block_size,
        "block_grid": block_grid,
        "clean_attention": clean_attention,
        "right_shift_logits": right_shift_logits,
        "eos_token_ids": eos_token_ids,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    stored = config.get(CONTRACT_KEY)
    if not isinstance(stored, dict | None):
        raise ValueError(f"config.json of {path}: {CONTRACT_KEY} must be an object")
    values = _foreign_values(path, directory, given) if stored is None else stored | given
    num_rows = config.get("vocab_size")
    if not isinstance(num_rows, int) or isinstance(num_rows, bool) or num_rows < 1:
        raise ValueError(f"config.json of {path} gives no vocab_size (it is {num_rows!r})")
    return _fit(path, values, num_rows)


def check_checkpoint(path: str | Path, **overrides: Any) -> Contract:
    """Checks that a checkpoint can be loaded, without loading it.

    Args:
        path: local directory or Hub id.
        overrides: as for `read_contract`.

    Returns:
        Its contract.

    Raises:
        ValueError: what is wrong and the fix.
    """
    contract = read_contract(path, **overrides)
    directory = Path(path).expanduser()
    if not directory.is_dir():
        return contract
    base = find_base(str(path), directory)
    if base is None:
        check_weights(str(path), directory)
        return contract
    try:
        check_checkpoint(base)
    except ValueError as error:
        raise ValueError(f"{path} holds adapters, and their base cannot be used: {error}") from None
    return contract


def load_checkpoint(
    path: str | Path,
    *,
    dtype: "torch.dtype",
    device: "torch.device | str",
    in_4bit: bool = False,
    with_gated: bool = True,
    **overrides: Any,
) -> Checkpoint:
    """Loads an A2D checkpoint. Never runs code from the checkpoint.

    Args:
        path: local directory or Hub id; LoRA adapters are merged into their base, gated ones are
            put in, the gate shut.
        dtype: dtype of the weights in memory.
        device: where the model goes.
        in_4bit: keep the linear layers in 4 bits (bitsandbytes), to train adapters on.
        with_gated: False: leave gated adapters out.
        overrides: as for `read_contract`.

    Raises:
        ValueError: what is wrong and the fix; weights that do not fit, by tensor name.
    """
    contract = check_checkpoint(path, **overrides)
    directory = find_directory(str(path), weights=True)
    tokenizer = _load_tokenizer(str(path), directory)
    base = find_base(str(path), directory)
    if base is not None:
        model = _merged(base, directory).to(dtype)
    else:
        quantized = _four_bits(device) if in_4bit else {}
        model = _own_model(str(path), directory, dtype=dtype, **quantized)
        if contract.gated_adapters is not None and with_gated:
            _add_gated(model, directory, contract)
    check_finite(str(path), model.state_dict())
    if not in_4bit:  # it is where it belongs then, and may not be moved
        model = model.to(device)
    return Checkpoint(model=model.eval(), tokenizer=tokenizer, contract=contract)


def _own_model(name: str, directory: Path, **options: Any) -> Any:
    """The model whose weights lie in a directory, on the CPU; every tensor must fit."""
    check_weights(name, directory)
    row = _a2d_architecture(name, read_json(directory, "config.json"))
    with one_line_errors(name):
        config = fit_config(
            name,
            row.config_class.from_pretrained(directory),
            directory,
            row.model_class._tied_weights_keys,
        )
        model, info = row.model_class.from_pretrained(
            directory,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that check_loading() names them
            **options,
        )
    check_loading(name, info)
    drop_foreign_ids(name, model.generation_config, config.vocab_size)
    return model


def _merged(base: str, directory: Path) -> Any:
    """A base with the adapters of a directory added, in fp32: bf16 sums would lose small ones."""
    import torch

    model = load_checkpoint(base, dtype=torch.float32, device="cpu").model
    with one_line_errors(f"the adapters of {directory}"):
        return with_adapters_merged(model, directory)


def _add_gated(model: Any, directory: Path, contract: Contract) -> None:
    """Puts the gated adapters of a directory into its model, the gate shut."""
    from a2d_ray.models.gated_lora import add_gated_adapters, settle_mask_row

    lora = contract.gated_adapters
    assert lora is not None
    adapted = add_gated_adapters(model, lora, mask_id=contract.mask_token_id, base=str(directory))
    with one_line_errors(str(directory / GATED_WEIGHTS)):
        restore_adapters(adapted, directory / GATED_WEIGHTS)
    settle_mask_row(model)
    model.to(model.dtype)  # peft keeps adapters in fp32


def _four_bits(device: "torch.device | str") -> dict[str, Any]:
    """How transformers loads linear layers as 4-bit NormalFloat. Source: QLoRA, 2305.14314."""
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "embed_out"],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def save_checkpoint(
    directory: str | Path,
    *,
    model: Any,
    tokenizer: Any,
    contract: Contract,
    dtype: "torch.dtype | None" = None,
    state_dict: "Mapping[str, torch.Tensor] | None" = None,
) -> None:
    """Writes a complete A2D checkpoint into a directory, which is created if need be.

    Args:
        directory: where the files go; existing files of the same names are replaced.
        model: the A2D model (its configuration, and its weights unless `state_dict` is given).
        tokenizer: transformers tokenizer, or None.
        contract: written to config.json; its a2d_ray_version is set to this version.
        dtype: floating-point weights are stored in it; None: as they are.
        state_dict: weights under the plain model's names, e.g. gathered from a wrapped model.

    Raises:
        ValueError: `state_dict` lacks tensors or holds unknown ones, by name.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stored_dtype = _save_weights(directory, model, dtype, state_dict)
    save_description(
        directory, model=model, tokenizer=tokenizer, contract=contract, dtype=stored_dtype
    )


def save_description(
    directory: Path, *, model: Any, tokenizer: Any, contract: Contract, dtype: str = "float32"
) -> None:
    """Writes everything of a checkpoint but weights: configuration, contract, tokenizer, code.

    Args:
        directory: an existing directory.
        model, tokenizer, contract: as for `save_checkpoint`.
        dtype: name of the dtype of the weights.
    """
    contract = contract.model_copy(update={"a2d_ray_version": __version__})
    values = config_values(model.config, contract, dtype)
    write_json(directory / "config.json", values | {"tie_word_embeddings": is_one_table(model)})
    write_json(directory / "generation_config.json", generation_values(model))
    if tokenizer is not None:
        save_tokenizer(directory, tokenizer)
    shutil.copyfile(architectures.__file__, directory / MODELING_FILE)


def _a2d_architecture(path: str | Path, config: dict[str, Any]) -> Architecture:
    model_type = config.get("model_type")
    row = find_architecture(model_type)
    if not isinstance(model_type, str):
        raise ValueError(f"config.json of {path} names no model_type: it is not an A2D checkpoint")
    if row is None or model_type != row.model_type:
        raise ValueError(
            f"{path} is an autoregressive {model_type} model: convert it first with "
            f"{command_of('convert')} source={path} output=DIRECTORY"
        )
    return row


def _foreign_values(path: str | Path, directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    values = {
        "objective": "bd3lm",
        "block_size": 32,
        "block_grid": "prompt_end",
        "training_grid": "absolute",
        "mask_token_id": find_mask_id(directory),
    } | given
    if values["mask_token_id"] is None:
        raise ValueError(
            f"{path} has no contract and its tokenizer no mask token: give mask_token_id"
        )
    shown = ", ".join(f"{key}={value}" for key, value in values.items())
    _log.warning("%s has no a2d contract: using %s", path, shown)
    return values


def _fit(path: str | Path, values: dict[str, Any], vocab_size: int) -> Contract:
    """The contract, if it fits the model."""
    try:
        contract = Contract.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        raise ValueError(f"the contract of {path} does not fit: {problems.strip()}") from None
    ids = [("mask_token_id", contract.mask_token_id)]
    ids += [("eos_token_ids", token_id) for token_id in contract.eos_token_ids]
    for key, token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(
                f"{key} ({token_id}) of {path} is outside its vocabulary of {vocab_size} rows"
            )
    return contract


def _load_tokenizer(name: str, directory: Path) -> Any:
    return open_tokenizer(name, directory) if any(directory.glob("tokenizer*")) else None


def _save_weights(
    directory: Path,
    model: Any,
    dtype: "torch.dtype | None",
    state_dict: "Mapping[str, torch.Tensor] | None",
) -> str:
    """Writes model.safetensors; returns the name of the floating-point dtype stored."""
    from safetensors.torch import save_file

    from a2d_ray.models.parts import output_name

    tied = {f"{output_name(model)}.weight"} if is_one_table(model) else set()
    own = plain_weights(model)
    expected = set(own) - tied
    weights = {k: v for k, v in (state_dict or own).items() if k not in tied}
    if wrong := expected ^ set(weights):
        raise ValueError(f"state_dict lacks, or has beyond the model's, {', '.join(sorted(wrong))}")
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in weights.items()
    }
    path = directory / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes 0o600, which other nodes' users cannot read
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")
