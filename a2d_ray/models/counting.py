"""What a model multiplies and holds: matrices per token, widths of attention, parameters.

Counted on the modules themselves, so it holds for any family. Of a mixture of experts a token is
multiplied with those that the router chooses.

H query heads, K key heads, d width of a query and key, e width of a value.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from a2d_ray.models.architectures import Architecture
from a2d_ray.models.attention_state import attention_state, state_of
from a2d_ray.models.miniature import CHOSEN_KEYS, make_miniature
from a2d_ray.models.parts import layers_of

_RECORDING = "a2d_recording"
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """One attention of a forward: H query heads and K key heads, widths of keys and values."""

    heads: int
    key_heads: int
    key_width: int
    value_width: int

    @property
    def pair_products(self) -> int:
        """Multiplications per query and key: scores, and the weighted values."""
        return self.heads * (self.key_width + self.value_width)


def attention_shapes(model: Any) -> list[AttentionShape]:
    """Every attention of a forward in its order, from a forward over one token."""
    shapes: list[AttentionShape] = []
    device = model.device
    before = model.config._attn_implementation
    model.config._attn_implementation = _RECORDING
    try:
        with torch.no_grad(), attention_state(model, recorded=shapes) as state:
            model.base_model(
                input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
                position_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
                use_cache=False,
                **state,
            )
    finally:
        model.config._attn_implementation = before
    return shapes


def _record(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    recorded: list[AttentionShape] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over one key, which is its value."""
    recorded = state_of(module, "recorded") if recorded is None else recorded
    num_heads = query.shape[1]
    shape = AttentionShape(
        heads=num_heads,
        key_heads=key.shape[1],
        key_width=key.shape[-1],
        value_width=value.shape[-1],
    )
    recorded.append(shape)
    return value.repeat_interleave(num_heads // value.shape[1], dim=1).transpose(1, 2), None


AttentionInterface.register(_RECORDING, _record)


def matrix_parameters(module: nn.Module, config: Any) -> float:
    """Weights of a module that a token is multiplied with, the chosen experts' only.

    Args:
        module: a backbone, a layer, or a head.
        config: of the model.
    """
    return sum(numel * share for _, numel, share in _matrices(module, config))


def _matrices(module: nn.Module, config: Any) -> Iterator[tuple[str, int, float]]:
    """Name, size and used share of every matrix; an embedding is looked up, not multiplied."""
    chosen = chosen_experts(config)
    for name, parameter, holder in _parameters(module):
        if isinstance(holder, nn.Embedding) or parameter.dim() < 2:
            continue
        num_experts = parameter.shape[0] if parameter.dim() == 3 else None
        if parameter.dim() == 2 and _EXPERT.search(name):
            experts: Any = module.get_submodule(f"{_EXPERT.split(name)[0]}.experts".lstrip("."))
            num_experts = len(experts)
        numel = parameter.numel()
        if isinstance(holder, nn.Linear):  # a weight in 4 bits is packed: fewer elements
            numel = holder.in_features * holder.out_features
        yield name, numel, min(1.0, chosen / num_experts) if num_experts else 1.0


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    for prefix, holder in module.named_modules():
        for name, parameter in holder.named_parameters(recurse=False):
            yield f"{prefix}.{name}".lstrip("."), parameter, holder


def chosen_experts(config: Any) -> int:
    """Experts that a token goes to; 1: the family has none, or names them otherwise."""
    found = (getattr(config, key, None) for key in CHOSEN_KEYS)
    return next((count for count in found if isinstance(count, int)), 1)


@dataclass(frozen=True, kw_only=True)
class ModelCounts:
    """Counts of a whole model, means over its layers where they differ.

    Attributes:
        parameters: all, a tied head once.
        layer_parameters: of a layer.
        layer_matrix_parameters: of a layer that a token is multiplied with.
        pair_products: multiplications of a layer per query and key.
        query_width, kv_width: of the queries and keys of a layer, all heads.
        linears: widths in and out of the linear layers of the last layer, by name.
        is_tied: whether the head is the embedding.
        hidden, layers, vocab: of the configuration.
    """

    parameters: int
    layer_parameters: float
    layer_matrix_parameters: float
    pair_products: float
    query_width: float
    kv_width: float
    linears: dict[str, tuple[int, int]]
    is_tied: bool
    hidden: int
    layers: int
    vocab: int


def count_model(values: dict[str, Any]) -> ModelCounts:
    """Counts of the model of a config.json, without its weights. Seconds.

    Args:
        values: of an AR or A2D checkpoint.

    Raises:
        ValueError: a family that transformers does not know.
    """
    architecture = Architecture.of(str(values.get("model_type")))
    config = architecture.ar_config_class.from_dict(
        {k: v for k, v in values.items() if k != "model_type"}
    )
    with torch.device("meta"):
        model = architecture.ar_model_class(config)
    layers = layers_of(model)
    num_layers = len(layers)
    small = make_miniature(architecture, config).a2d
    shapes = attention_shapes(small)
    per_layer = len(shapes) / small.config.num_hidden_layers

    def mean(values: Iterator[float]) -> float:
        return per_layer * sum(values) / len(shapes)

    return ModelCounts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layer_parameters=sum(p.numel() for p in layers.parameters()) / num_layers,
        layer_matrix_parameters=matrix_parameters(layers, config) / num_layers,
        pair_products=mean(shape.pair_products for shape in shapes),
        query_width=mean(shape.heads * shape.key_width for shape in shapes),
        kv_width=mean(shape.key_heads * shape.key_width for shape in shapes),
        linears=_linears(layers[-1]),
        is_tied=bool(config.tie_word_embeddings),
        hidden=config.hidden_size,
        layers=num_layers,
        vocab=config.vocab_size,
    )


def _linears(layer: nn.Module) -> dict[str, tuple[int, int]]:
    """Widths of the linear layers of a layer, by the last part of their name."""
    found = {}
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D" and weight is not None:
            found[name] = (weight.shape[0], weight.shape[1])
    return found
