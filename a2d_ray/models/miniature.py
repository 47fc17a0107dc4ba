"""A small random model of a configuration: few layers, few words, narrow MLPs, few experts.

What attention is made of stays as it is: widths, heads, ranks, kinds of layers, caps and scales.
So a 7B configuration takes half a gibibyte.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from a2d_ray.models.architectures import Architecture
from a2d_ray.models.conversion import a2d_config

VOCAB = 320
MASK_ID = VOCAB - 1
_LAYERS, _MOST_LAYERS = 2, 8
_MLP_WIDTH, _EXPERTS, _CHOSEN = 64, 8, 2
_MLP_KEYS = ("n_inner", "ffn_dim", "ffn_hidden_size", "expert_ffn_hidden_size")
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_KEYS = (
    *("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "num_experts_per_token"),
)
"""Under which families say how many experts a token goes to."""
_SMALL_INITIAL = 0.5  # of embeddings


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """One model twice, with the same weights.

    Attributes:
        ar: of transformers' own class.
        a2d: of the A2D class.
    """

    ar: Any
    a2d: Any


def make_miniature(architecture: Architecture, config: Any, *, seed: int = 0) -> Miniature:
    """A small random model of an AR configuration, before and after conversion.

    Args:
        architecture: its family.
        config: transformers' AR configuration; it stays as it is.
        seed: of the weights.
    """
    with _silence(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = architecture.ar_config_class(**small_values(config))
        ar = architecture.ar_model_class._from_config(small, dtype=torch.float32).eval()
        with torch.no_grad():
            _fill(ar)
        a2d = architecture.model_class._from_config(
            a2d_config(architecture, small)[0], dtype=torch.float32
        )
        a2d.load_state_dict(ar.state_dict(), assign=True)
        a2d.tie_weights()
    return Miniature(ar=ar, a2d=a2d.eval())


@contextmanager
def _silence() -> Iterator[None]:
    """What transformers has to say about a small configuration helps nobody."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def small_values(config: Any) -> dict[str, Any]:
    """Values of a configuration like this one, for a small model."""
    values = config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "dtype", "auto_map"):
        values.pop(key, None)
    num_layers = config.num_hidden_layers
    kept = _num_layers(values, num_layers)
    for key, value in values.items():
        values[key] = _small(key, value, num_layers, kept)
    layers_key = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    values[layers_key] = kept
    if values.get("first_k_dense_replace"):
        values["first_k_dense_replace"] = 1
    if (values.get("n_group") or 1) > 1:
        values |= {"n_group": 2, "topk_group": 1}
    return values


def _small(key: str, value: Any, num_layers: int, kept: int) -> Any:
    if isinstance(value, list | tuple) and len(value) == num_layers and num_layers > 1:
        return [_small(key, each, 0, 0) for each in value[:kept]]
    if key.endswith("_token_id"):
        ids = value if isinstance(value, list) else [value]
        small = [i if i is None or i < MASK_ID else 2 for i in ids]
        return small if isinstance(value, list) else small[0]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return value
    limits = {"vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB}
    if key.endswith("intermediate_size") or key in _MLP_KEYS:
        limits[key] = _MLP_WIDTH
    limits |= dict.fromkeys(_EXPERT_KEYS, _EXPERTS) | dict.fromkeys(CHOSEN_KEYS, _CHOSEN)
    return min(value, limits.get(key, value))


def _num_layers(values: dict[str, Any], num_layers: int) -> int:
    """The fewest first layers that show every kind of layer, two at least."""
    kinds = [
        [str(kind) for kind in value]
        for value in values.values()
        if isinstance(value, list | tuple) and len(value) == num_layers
    ]
    needed = [max((kinds_L.index(kind) for kind in set(kinds_L)), default=0) for kinds_L in kinds]
    least = _LAYERS + bool(values.get("first_k_dense_replace"))
    return min(num_layers, _MOST_LAYERS, max([least, *(last + 1 for last in needed)]))


def _fill(model: Any) -> None:
    """Random weights of a size at which every part matters, norms and biases too."""
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter is embedding:
            parameter.normal_(0, _SMALL_INITIAL)
        elif parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
        else:
            parameter += 0.1 * torch.randn_like(parameter)
