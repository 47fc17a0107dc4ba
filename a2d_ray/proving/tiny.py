"""Tiny configurations of families that tests hold to the laws: a default one, made narrow."""

from typing import Any

from a2d_ray.models.architectures import Architecture

FAMILIES = (
    *("afmoe", "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "deepseek_v2"),
    *("deepseek_v3", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "flex_olmo", "gemma"),
    *("gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox"),
    *("gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "jetmoe", "llama"),
    *("minicpm3", "ministral", "mistral", "mixtral", "nanochat", "nemotron", "olmo", "olmo2"),
    *("olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma"),
)

_SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 64,
    "n_inner": 64,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {  # of attention over a latent, each head has its own keys
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
_OWN: dict[str, dict[str, Any]] = {"dots1": {"n_shared_experts": 1}}
"""What a family needs besides."""


def tiny_config(model_type: str, **sizes: Any) -> Any:
    """A tiny AR configuration of a family.

    Args:
        model_type: of the AR model.
        sizes: replace values.
    """
    config_class = Architecture.of(model_type).ar_config_class
    known = config_class().to_dict()
    small = _SMALL | (_LATENT if "qk_rope_head_dim" in known else {})
    values: dict[str, Any] = {key: value for key, value in small.items() if key in known}
    if "layer_types" in known:
        values["layer_types"] = _layer_types(known["layer_types"])
        values["num_hidden_layers"] = len(values["layer_types"])
    return config_class(**values | _OWN.get(model_type, {}) | sizes)


def _layer_types(kinds: list[str] | None) -> list[str]:
    """A layer of each kind, two at least."""
    each = list(dict.fromkeys(kinds or ["full_attention"]))
    return each * (1 if len(each) > 1 else 2)
