"""What an AR configuration must be, and what a conversion changes in it, for any family.

A family that is refused here never comes to its proof: one sentence says why. Nothing here loads
torch.
"""

from typing import Any

from a2d_ray.models.architectures import Architecture, find_architecture
from a2d_ray.models.weights import one_line_errors

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_OTHER_LAYERS = ("mlp", "moe", "dense", "sparse")  # of lists that say what follows attention
_RECURRENT = ("linear_attention", "conv", "mamba", "recurrent", "ssm")
RECURRENT_FAMILIES = {
    *("bailing_hybrid", "bamba", "deepseek_v4", "falcon_h1", "falcon_mamba", "granitemoehybrid"),
    *("jamba", "kimi_linear", "mamba", "mamba2", "nemotron_h", "olmo_hybrid", "qwen3_5"),
    *("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp"),
    *("qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya"),
}
"""What transformers calls stateful: they are refused by name, before it is imported."""

_INDEXED = "indexed_attention"
_LAYER_KEYS = ("layer_types", "layers_block_type", "layers_types", "block_types")
_WINDOWS = (
    *("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size"),
    *("local_attention", "window_size", "keep_window_size"),
)


def find_family(name: str, config: dict[str, Any]) -> Architecture:
    """The architecture of an AR checkpoint, if its family can become bidirectional at all.

    Only a family that is not known yet takes transformers.

    Args:
        name: the model, for the message.
        config: its config.json.

    Raises:
        ValueError: a family that cannot; says why.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"{name}: config.json names no model_type, but {model_type!r:.40}")
    known = find_architecture(model_type)
    if known is not None:
        return known
    architecture = None
    reason = early_refusal(config)
    if reason is None:
        try:
            architecture = Architecture.of(model_type)
            with one_line_errors(name):
                filled = architecture.ar_config_class.from_dict(config).to_dict()
            reason = refusal(architecture, config | filled)
        except ValueError as error:
            reason = str(error)
    if architecture is None or reason is not None:
        raise ValueError(
            f"{name} has architecture {model_type!r}, which is not supported: {reason}"
        )
    return architecture


def early_refusal(config: dict[str, Any]) -> str | None:
    """Why a family cannot become bidirectional, as far as its config.json says it by itself.

    Takes no transformers, whose import takes seconds.

    Args:
        config: its config.json, or all values of its configuration.

    Returns:
        One sentence, or None: `refusal` may know more.
    """
    if "text_config" in config or "vision_config" in config or "audio_config" in config:
        return "it is multimodal; convert its language model, saved alone"
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder model, and conversion takes decoders alone"
    kinds = _layer_kinds(config)
    if _INDEXED in kinds:
        return "an indexer picks the keys of each query in causal order, which no mask can undo"
    strange = kinds - {*_ATTENTION, *_OTHER_LAYERS}
    if strange & {*_RECURRENT} or config.get("model_type") in RECURRENT_FAMILIES:
        return f"it has recurrent layers{_named(strange)}, whose state runs from left to right only"
    if not config.get("is_decoder") and _is_encoder(config):
        return "it is an encoder, which is bidirectional already"
    return None


def refusal(architecture: Architecture, config: dict[str, Any]) -> str | None:
    """Why a family cannot become bidirectional, in one sentence, or None: only a proof can say.

    Args:
        architecture: the family.
        config: values of its configuration.
    """
    if architecture.is_known:
        return None
    reason = early_refusal(config)
    if reason is not None:
        return reason
    strange = _layer_kinds(config) - {*_ATTENTION, *_OTHER_LAYERS}
    if getattr(architecture.ar_model_class, "_is_stateful", False):
        return f"it has recurrent layers{_named(strange)}, whose state runs from left to right only"
    if strange:
        return f"it has layers that are not plain attention{_named(strange)}"
    return None


def _named(kinds: set[str]) -> str:
    return f" ({', '.join(sorted(kinds))})" if kinds else ""


def _is_encoder(config: dict[str, Any]) -> bool:
    return "type_vocab_size" in config


def _layer_kinds(config: dict[str, Any]) -> set[str]:
    """Kinds of layers that a configuration names."""
    lists = (config.get(key) for key in _LAYER_KEYS)
    return {str(kind) for kinds in lists for kind in kinds or () if isinstance(kinds, list | tuple)}


def windows_of(values: dict[str, Any]) -> dict[str, int]:
    """The windows in which some layers attend, tokens by key of the configuration."""
    found = {key: values.get(key) for key in _WINDOWS}
    return {key: window for key, window in found.items() if isinstance(window, int) and window > 0}


def bidirectional_values(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of an AR configuration with attention over everything and without dropout.

    Kinds of layers stay as they are, since families choose more than a window by them. A window
    becomes as wide as the context. Dropout would make what a run computes depend on more than its
    seed and step.

    Args:
        values: of the AR configuration.

    Returns:
        New values, and what differs, a line each.
    """
    context = values.get("max_position_embeddings") or 0
    changes: dict[str, Any] = {}
    notes = []
    windows = windows_of(values)
    if windows and _attends_in_windows(values):
        width = max(context, *windows.values())
        changes |= dict.fromkeys(windows, width)
        shown = ", ".join(f"{key}={window}" for key, window in windows.items())
        notes.append(f"attends within windows ({shown}); the A2D model attends to everything")
    dropouts = {
        key: rate
        for key, rate in values.items()
        if isinstance(rate, float) and rate > 0 and key.rpartition("_")[2] in ("dropout", "pdrop")
    }
    if dropouts:
        changes |= dict.fromkeys(dropouts, 0.0)
        shown = ", ".join(f"{key}={rate}" for key, rate in dropouts.items())
        notes.append(f"was trained with dropout ({shown}); the A2D model has none")
    return values | changes, notes


def _attends_in_windows(values: dict[str, Any]) -> bool:
    """Whether some layer has a window; without kinds of layers all of them have it."""
    if values.get("use_sliding_window") is False:
        return False
    kinds = _layer_kinds(values)
    return not kinds or bool(kinds & {"sliding_attention", "chunked_attention"})
