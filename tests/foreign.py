"""Tiny random checkpoints in the layouts of other projects, in place of downloads."""

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE, tiny_ar_model

# Layout -> architecture, token of the mask, its id, config.json, what changes in the model.
LAYOUTS: dict[str, dict[str, Any]] = {
    "sdar": {
        "architecture": "qwen3",
        "mask": ("<|MASK|>", 259),
        "config": {"model_type": "sdar", "block_size": 4, "mask_token_id": 259},
        "sizes": {"tie_word_embeddings": False},
    },
    "fast_dllm_v2": {
        "architecture": "qwen2",
        "mask": ("|<MASK>|", 151665),
        "config": {"model_type": "Fast_dLLM_Qwen", "bd_size": 8},
        "sizes": {"vocab_size": 151680, "hidden_size": 16, "intermediate_size": 16},
    },
    "dream": {
        "architecture": "qwen2",
        "mask": ("<|mask|>", 259),
        "config": {"model_type": "Dream", "mask_token_id": 259},
        "sizes": {"tie_word_embeddings": False},
    },
    "llada": {
        "architecture": "llama",
        "mask": ("<|mdm_mask|>", 259),
        "config": None,
        "sizes": {"tie_word_embeddings": False, "num_key_value_heads": 4, "rope_theta": 500000.0},
    },
    "stable_diffcoder": {
        "architecture": "llama",
        "mask": ("<[mask]>", 5),
        "config": {"architectures": ["StableDiffcoderForCausalLM"]},
        "sizes": {"tie_word_embeddings": False},
    },
}
_LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "model.layers": "model.transformer.blocks",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_LLADA_CONFIG = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": None,
    "mlp_hidden_size": 64,
    "vocab_size": 320,
    "embedding_size": 320,
    "max_sequence_length": 512,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
    "weight_tying": False,
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "include_bias": False,
    "multi_query_attention": None,
    "mask_token_id": 259,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
}


def foreign_ar_model(layout: str) -> Any:
    """The AR model of transformers that has the weights of `save_foreign`."""
    row = LAYOUTS[layout]
    return tiny_ar_model(row["architecture"], **row["sizes"])


def save_foreign(directory: str | Path, layout: str, **config: Any) -> Path:
    """Writes a tiny random checkpoint as its project would; `config` changes its config.json."""
    directory = Path(directory)
    row = LAYOUTS[layout]
    foreign_ar_model(layout).save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    values = {"auto_map": {"AutoModel": "modeling.Model"}, **values, **(row["config"] or {})}
    if layout == "llada":
        values = dict(_LLADA_CONFIG)
        weights = load_file(directory / "model.safetensors")
        save_file({_llada_name(k): v for k, v in weights.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(values | config))
    _save_tokenizer(directory, *row["mask"], is_split=layout == "dream")
    return directory


def _llada_name(name: str) -> str:
    for ours, theirs in _LLADA_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _save_tokenizer(directory: Path, mask: str, mask_id: int, *, is_split: bool) -> None:
    """A byte tokenizer with a mask token of this id; `is_split`: as vocab.json and merges.txt."""
    texts = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>")
    places = (256, 257, 258, 260) if is_split else (0, 1, 2, 3)
    special = dict(zip(texts, places, strict=True)) | {mask: mask_id}
    free = (i for i in range(300) if i not in special.values())
    vocabulary = {piece: next(free) for piece in sorted(pre_tokenizers.ByteLevel.alphabet())}
    if is_split:
        settings = {
            "tokenizer_class": "DreamTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
            "added_tokens_decoder": {
                str(i): {"content": text, "special": True}
                for text, i in sorted(special.items(), key=itemgetter(1))
            },
            "mask_token": mask,
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        }
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
        (directory / "merges.txt").write_text("#version: 0.2\n")
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    backend = Tokenizer(models.BPE(vocab=vocabulary | special, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
