"""A tiny tokenizer and tiny random AR models: what tests use in place of downloads."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "olmo2": (transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte behind three special ones: 259 ids, ChatML, pad = eos = <|im_end|> (2)."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def tiny_ar_model(architecture: str = "llama", *, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """A random 2-layer fp32 AR model; `sizes` replaces configuration values.

    Biases and norms are random too, so that a weight that gets lost changes the logits.
    """
    values: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.1,
    }
    if architecture == "qwen3":
        values["head_dim"] = 8
    config_class, model_class = _CLASSES[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**values | sizes)).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def save_tiny_ar(directory: str | Path, architecture: str = "llama", **sizes: Any) -> Path:
    """Writes a tiny random AR checkpoint with its tokenizer; returns the directory."""
    tiny_ar_model(architecture, **sizes).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return Path(directory)


def tiny_a2d_model(architecture: str = "llama", *, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """The A2D twin of `tiny_ar_model`: same weights, bidirectional attention."""
    from a2d_ray.models.architectures import find_architecture

    ar_model = tiny_ar_model(architecture, seed=seed, **sizes)
    row = find_architecture(architecture)
    assert row is not None
    model = row.model_class(
        row.config_class(**ar_model.config.to_diff_dict() | {"model_type": row.model_type})
    )
    model.load_state_dict(ar_model.state_dict())
    return model.eval()
