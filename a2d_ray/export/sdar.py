"""A Qwen3 BD3LM checkpoint as an SDAR checkpoint, which public GPU servers know.

Trained on the absolute grid with `clean_attention: block` and without right shift, it is one: the
same tensors, the same values. Written here are the traps that no server reports: an untied head
(SGLang cannot load a tied one), the mask token's row of it as zeros, and the mask token at the id
that SGLang and LMDeploy have in their code.

V rows of the embedding, D hidden size.

Sources: SDAR 2510.06303; SGLang 0.5, LMDeploy 0.18 and JetEngine as read.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from a2d_ray.export.probe import check_mask_is_quiet
from a2d_ray.export.refusals import mask_refusals, padded_rows, sdar_refusals
from a2d_ray.models.adapters import plain_weights
from a2d_ray.models.checkpoint import load_checkpoint, read_contract
from a2d_ray.models.contract import Contract
from a2d_ray.models.descriptions import CONTRACT_KEY
from a2d_ray.models.device import resolve_device
from a2d_ray.models.directories import WEIGHTS_FILE, find_directory, read_json, write_json
from a2d_ray.models.importing import load_foreign_model
from a2d_ray.models.outputs import written_beside
from a2d_ray.models.sources import find_source
from a2d_ray.models.tokenizers import load_tokenizer, save_tokenizer
from a2d_ray.models.weights import EMBEDDING, HEAD
from a2d_ray.text.language_model import LanguageModel, Prompt

if TYPE_CHECKING:
    from torch import Tensor

SERVERS_MASK_ID = 151669
"""The mask of SDAR in the code of SGLang and LMDeploy; Qwen3's tokenizer leaves this id free."""

CONFIGURATION_FILE = "configuration_sdar.py"
DECODING_FILE = "dllm.yaml"
_KEPT = [
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("hidden_size", "intermediate_size", "num_hidden_layers", "max_window_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("attention_bias", "attention_dropout", "hidden_act", "initializer_range", "rms_norm_eps"),
]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        output: the directory.
        block_size: tokens per block.
        threshold: confidence above which the servers commit.
        mask_token_id: id of the mask token in it.
        moved_from: its id in the source.
        num_rows: rows of embedding and head.
        dtype: stored precision.
        num_prompts: prompts of the probe.
        mask_probability: the largest that the probe saw for the mask token.
    """

    output: Path
    block_size: int
    threshold: float
    mask_token_id: int
    moved_from: int
    num_rows: int
    dtype: str
    num_prompts: int
    mask_probability: float

    def describe(self) -> str:
        """What it is, and how three servers are started on it."""
        moved = self.moved_from != self.mask_token_id
        mask = f"{self.mask_token_id}{f' (was {self.moved_from})' if moved else ''}"
        return "\n".join(
            [
                f"format        SDAR ({self.dtype}), block {self.block_size}",
                f"mask token    id {mask} of {self.num_rows:,}; its row of the head is zero",
                f"probe         {self.num_prompts} prompts: P(mask) at most "
                f"{self.mask_probability:.2g}",
                f"output        {self.output}",
                *self.commands(),
            ]
        )

    def commands(self) -> list[str]:
        """The start command of each server that takes this mask id. None was run here on a GPU."""
        found = [
            f'JetEngine     LLM("{self.output}", mask_token_id={self.mask_token_id}, '
            f"block_length={self.block_size})"
        ]
        if self.mask_token_id != SERVERS_MASK_ID:
            return [*found, f"SGLang and LMDeploy know the mask id {SERVERS_MASK_ID} only"]
        return [
            f"SGLang        python -m sglang.launch_server --model-path {self.output} "
            "--trust-remote-code --dllm-algorithm LowConfidence "
            f"--dllm-algorithm-config {self.output}/{DECODING_FILE}",
            f"LMDeploy      lmdeploy serve api_server {self.output} --backend pytorch "
            f"--dllm-block-length {self.block_size} --dllm-denoising-steps {self.block_size} "
            "--dllm-unmasking-strategy low_confidence_dynamic "
            f"--dllm-confidence-threshold {self.threshold}",
            *found,
        ]


def export_sdar(
    path: str,
    output: str | Path,
    *,
    prompts: Sequence[str],
    mask_id: int = SERVERS_MASK_ID,
    threshold: float = 0.9,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    device: str = "auto",
    overwrite: bool = False,
    **contract: Any,
) -> Exported:
    """Writes a checkpoint in SDAR's format, reads it back and probes it.

    Args:
        path: A2D checkpoint, a directory or a Hub id.
        output: directory to write; it appears when complete and probed.
        prompts: what the probe continues, as a chat where there is a chat template.
        mask_id: id that the mask token gets.
        threshold: confidence above which servers commit; written for them, and used by the probe.
        dtype: stored precision.
        device: where the probe runs.
        overwrite: replace an `output` that is a model directory.
        contract: overrides: ``block_size``; for a directory without a contract ``objective`` and
            ``mask_token_id``.

    Raises:
        ValueError: every reason why those servers would decode it otherwise; or a loud mask token.
    """
    import torch

    output = Path(output).expanduser()
    place = resolve_device(device)
    torch_dtype = getattr(torch, dtype)
    held = read_contract(path, **contract)
    _check(path, held, mask_id, contract)
    with written_beside(output, path, overwrite=overwrite) as directory:
        loaded = load_checkpoint(path, dtype=torch_dtype, device="cpu", **contract)
        lm = LanguageModel(loaded.model, loaded.tokenizer, loaded.contract)
        asked = [_encode(lm, prompt) for prompt in prompts]
        _write(directory, lm, mask_id, threshold, dtype)
        del loaded, lm
        written, _ = load_foreign_model(find_source(str(directory)), dtype=torch_dtype)
        num_rows = written.config.vocab_size
        try:
            largest = check_mask_is_quiet(
                written.to(place),
                asked,
                mask_id=mask_id,
                block_size=held.block_size,
                threshold=threshold,
            )
        except ValueError as error:
            raise _refused(path, [str(error)]) from None
    return Exported(
        output=output,
        block_size=held.block_size,
        threshold=threshold,
        mask_token_id=mask_id,
        moved_from=held.mask_token_id,
        num_rows=num_rows,
        dtype=dtype,
        num_prompts=len(prompts),
        mask_probability=largest,
    )


def _check(path: str, contract: Contract, mask_id: int, overrides: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that these servers would decode otherwise than it was trained."""
    directory = find_directory(path, weights=False)
    config = read_json(directory, "config.json")
    stored = config.get(CONTRACT_KEY)
    has_objective = stored is not None or "objective" in overrides
    reasons = sdar_refusals(directory, config, contract, has_objective=has_objective)
    for key in ("objective", "mask_token_id"):
        held = (stored or overrides).get(key)
        if overrides.get(key, held) != held:
            reasons.append(f"its contract says {key}={held}: leave model.{key} out")
    if any(directory.glob("tokenizer*")):
        reasons += mask_refusals(
            config["vocab_size"],
            load_tokenizer(path).get_vocab(),
            old=contract.mask_token_id,
            new=mask_id,
        )
    if reasons:
        raise _refused(path, reasons)


def _refused(path: str, reasons: list[str]) -> ValueError:
    listed = "".join(f"\n- {reason}" for reason in reasons)
    return ValueError(f"{path} cannot be exported in SDAR's format:{listed}")


def _encode(lm: LanguageModel, prompt: str) -> list[int]:
    """A prompt's token ids, as a chat where the model knows chats."""
    is_chat = lm.tokenizer.chat_template is not None
    asked: Prompt = [{"role": "user", "content": prompt}] if is_chat else prompt
    return [token for segment in lm.encode(asked) for token in segment]


def _write(directory: Path, lm: LanguageModel, mask_id: int, threshold: float, dtype: str) -> None:
    """Writes everything of the format; the tokenizer forgets a mask token that has moved."""
    from safetensors.torch import save_file

    old = lm.contract.mask_token_id
    if mask_id != old:
        lm.tokenizer.mask_token = None
    weights = _weights(lm.model, old, mask_id)
    path = directory / WEIGHTS_FILE
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes 0o600
    config = _config(lm.model.config, lm.contract.block_size, mask_id, dtype)
    write_json(directory / "config.json", config | {"vocab_size": len(weights[EMBEDDING])})
    ends = sorted(lm.eos_token_ids)
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", ids | {"eos_token_id": ends})
    decoding = f"block_size: {lm.contract.block_size}\nthreshold: {threshold}\n"
    (directory / DECODING_FILE).write_text(decoding)
    shutil.copyfile(Path(__file__).with_name(CONFIGURATION_FILE), directory / CONFIGURATION_FILE)
    save_tokenizer(directory, lm.tokenizer)


def _weights(model: Any, old: int, new: int) -> "dict[str, Tensor]":
    """The tensors, the head untied and without a say in the mask token."""
    weights = {name: tensor.detach().contiguous() for name, tensor in plain_weights(model).items()}
    tables = {name: _with_row(weights[name], old, new) for name in (EMBEDDING, HEAD)}
    tables[HEAD][[old, new]] = 0
    return weights | tables


def _with_row(weight_VD: "Tensor", old: int, new: int) -> "Tensor":
    """A copy whose row `new` is row `old`; it grows to a multiple of 64 if it has no such row."""
    num_rows = len(weight_VD)
    if new >= num_rows:
        num_rows = padded_rows(num_rows)
    copy_VD = weight_VD.new_zeros(num_rows, weight_VD.shape[1])
    copy_VD[: len(weight_VD)] = weight_VD
    copy_VD[new] = weight_VD[old]
    return copy_VD


def _config(config: Any, block_size: int, mask_id: int, dtype: str) -> dict[str, Any]:
    """config.json in the form of transformers 4, which SDAR's servers read."""
    values = config.to_dict()
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    return {key: values.get(key) for key in _KEPT} | {
        "architectures": ["SDARForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIGURATION_FILE.removesuffix('.py')}.SDARConfig"},
        "model_type": "sdar",
        "block_size": block_size,
        "mask_token_id": mask_id,
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "fuse_cross_entropy": False,
        "torch_dtype": dtype,
    }
