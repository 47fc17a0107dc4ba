"""Diffusion checkpoints of other projects: how each maps to an architecture of ours.

A row of `FOREIGN_MODELS` says how a checkpoint is recognised by its config.json, which architecture
has the same arithmetic, how tensors and configuration keys are renamed, and the contract that its
training implies. Imports neither torch nor transformers.

Sources: SDAR 2510.06303, Fast-dLLM v2 2509.26328, Dream 2508.15487, DiffuCoder 2506.20639, LLaDA
2502.09992, Stable-DiffCoder 2601.15892, and the model files beside their weights.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from a2d_ray.models.architectures import Architecture, find_architecture
from a2d_ray.models.contract import Contract

ConfigValues = dict[str, Any]

_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # computed, though some files hold it
_QWEN_ENDS = ("<|endoftext|>", "<|im_end|>")


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """One kind of diffusion checkpoint of another project.

    Attributes:
        name: the project's name for it.
        marks: what its config.json has as `model_type` or among `architectures`.
        ar_model_type: the architecture that has the same tensors and arithmetic.
        contract: what its training implies; without mask token and block size.
        mask_token_id: the mask's id, if config.json does not name one (`mask_token_id`).
        block_key: key of config.json that holds the block size.
        block_size: the block size, if config.json does not.
        ends: tokens that end an answer, besides those that its files name.
        renamed: (pattern, replacement) of tensor names; the first that matches counts.
        translate: config.json in the AR architecture's keys.
        needed: values of config.json (where it has the key) that the mapping relies on.
    """

    name: str
    marks: frozenset[str]
    ar_model_type: str
    contract: Mapping[str, Any]
    mask_token_id: int
    block_key: str | None = None
    block_size: int = 32
    ends: tuple[str, ...] = _QWEN_ENDS
    renamed: tuple[tuple[str, str], ...] = ()
    translate: Callable[[ConfigValues], ConfigValues] = dict
    needed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The row of the architecture that it maps to."""
        row = find_architecture(self.ar_model_type)
        assert row is not None
        return row

    def tensor_name(self, name: str) -> str | None:
        """Our name of a tensor; None: it is computed, not loaded."""
        if _BUFFERS.search(name):
            return None
        for pattern, replacement in self.renamed:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return name

    def contract_of(self, config: ConfigValues) -> Contract:
        """The contract of a checkpoint with this config.json, its source left open."""
        block_size = config.get(self.block_key or "") or self.block_size
        is_blockwise = self.contract["objective"] == "bd3lm"
        return Contract(
            mask_token_id=config.get("mask_token_id") or self.mask_token_id,
            block_size=block_size,
            block_sizes=(block_size,) if is_blockwise else (),
            **self.contract,
        )

    def check(self, name: str, config: ConfigValues) -> None:
        """Refuses a configuration that the mapping would get wrong.

        Raises:
            ValueError: names every key, its value and the one that is known.
        """
        wrong = [
            f"{key}={config[key]!r} (known is {value!r})"
            for key, value in self.needed.items()
            if key in config and (config[key] or False) != value
        ]
        if wrong:
            raise ValueError(f"{name} is a {self.name} model with {', '.join(wrong)}")


def find_foreign(config: Mapping[str, Any]) -> ForeignModel | None:
    """The row that a config.json belongs to, or None."""
    classes = config.get("architectures")
    named = [config.get("model_type"), *(classes if isinstance(classes, list) else ())]
    found = {name for name in named if isinstance(name, str)}
    return next((row for row in FOREIGN_MODELS if row.marks & found), None)


def _llada_values(config: ConfigValues) -> ConfigValues:
    """LLaDA's configuration, which is OLMo's of 2024, in Llama's keys."""
    hidden_size = config["d_model"]
    return {
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": config.get("mlp_hidden_size") or config["mlp_ratio"] * hidden_size,
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config.get("n_kv_heads") or config["n_heads"],
        "max_position_embeddings": config["max_sequence_length"],
        "rope_theta": config.get("rope_theta", 10000.0),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "tie_word_embeddings": config.get("weight_tying", True),
        "initializer_range": config.get("init_std", 0.02),
        **{key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


_LLADA_LAYER = r"model\.transformer\.blocks\.(\d+)\."
_LLADA_NAMES = (
    (r"model\.transformer\.wte\.weight", "model.embed_tokens.weight"),
    (r"model\.transformer\.ln_f\.weight", "model.norm.weight"),
    (r"model\.transformer\.ff_out\.weight", "lm_head.weight"),
    (_LLADA_LAYER + r"attn_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (_LLADA_LAYER + r"ff_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (_LLADA_LAYER + r"([qkv])_proj\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (_LLADA_LAYER + r"attn_out\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_LLADA_LAYER + r"ff_proj\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (_LLADA_LAYER + r"up_proj\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (_LLADA_LAYER + r"ff_out\.weight", r"model.layers.\1.mlp.down_proj.weight"),
)
_LLADA_NEEDED = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "multi_query_attention": False,
    "scale_logits": False,
    "block_group_size": 1,
}
_BLOCKS = {"objective": "bd3lm", "block_grid": "absolute", "clean_attention": "block"}
_WHOLE_SEQUENCE = {"use_sliding_window": False}

FOREIGN_MODELS = (
    ForeignModel(
        name="SDAR",
        marks=frozenset({"sdar", "SDARForCausalLM"}),
        ar_model_type="qwen3",
        contract=_BLOCKS,
        mask_token_id=151669,
        block_key="block_size",
        block_size=4,
        needed=_WHOLE_SEQUENCE,
    ),
    ForeignModel(
        name="Fast-dLLM v2",
        marks=frozenset({"Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM"}),
        ar_model_type="qwen2",
        contract=_BLOCKS | {"right_shift_logits": True},
        mask_token_id=151665,
        block_key="bd_size",
        needed=_WHOLE_SEQUENCE,
    ),
    ForeignModel(
        name="Dream",
        marks=frozenset({"Dream", "DreamModel"}),
        ar_model_type="qwen2",
        contract={"objective": "mdlm", "right_shift_logits": True},
        mask_token_id=151666,
        needed=_WHOLE_SEQUENCE,
    ),
    ForeignModel(
        name="LLaDA",
        marks=frozenset({"llada", "LLaDAModelLM"}),
        ar_model_type="llama",
        contract={"objective": "mdlm"},
        mask_token_id=126336,
        ends=("<|endoftext|>", "<|eot_id|>"),
        renamed=_LLADA_NAMES,
        translate=_llada_values,
        needed=_LLADA_NEEDED,
    ),
    ForeignModel(
        name="Stable-DiffCoder",
        marks=frozenset({"StableDiffcoderForCausalLM"}),  # its model_type is llama
        ar_model_type="llama",
        contract=_BLOCKS,
        mask_token_id=5,
        block_size=4,
        ends=(),
    ),
)
