"""Parts of a model of any family: backbone, layers, final norm, embedding, head.

Families name them differently. Nothing here is a list of families: transformers' own classes are
asked. The head is a function of the architecture, with all that follows the product with its
weight: soft-caps, scales, biases.

N tokens, H width, V vocabulary.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from a2d_ray.diffusion.head_loss import Head

_NO_LIMIT = 1_000_000  # of models without one
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def head_of(model: Any) -> Head:
    """The function from final hidden states to logits: the class's own forward behind its backbone.

    Args:
        model: A2D or AR model with head. Its weights are shared; hooks of its modules do not run.
    """
    around = copy.copy(model)
    around._modules = {
        name: _Given() if name == model.base_model_prefix else _without_hooks(child)
        for name, child in model._modules.items()
    }

    def head(hidden_NH: Tensor) -> Tensor:
        outputs = type(around).forward(around, inputs_embeds=hidden_NH[None], use_cache=False)
        return outputs.logits.squeeze(0)  # a selection's backward would copy the gradient

    return head


def head_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters that the head reads, the embedding's too where they are one."""
    prefix = f"{model.base_model_prefix}."
    named = model.named_parameters(remove_duplicate=False)
    return [parameter for name, parameter in named if not name.startswith(prefix)]


def layers_of(model: Any) -> nn.ModuleList:
    """The layers of a model, first to last.

    Raises:
        ValueError: its backbone has no list of `num_hidden_layers` layers.
    """
    return _stack(model)[1]


def final_norm_of(model: Any) -> nn.Module | None:
    """The norm behind the last layer, or None: there is none."""
    holder, layers = _stack(model)
    children = list(holder.children())
    behind = children[children.index(layers) + 1 :]
    return next((child for child in behind if "Norm" in type(child).__name__), None)


def embedding_name(model: Any) -> str:
    """Name of the input embedding's module, e.g. ``model.embed_tokens``."""
    return _name_of(model, model.get_input_embeddings())


def output_name(model: Any) -> str:
    """Name of the head's module, e.g. ``lm_head``."""
    return _name_of(model, model.get_output_embeddings())


def parent_of(model: Any, name: str) -> tuple[Any, str]:
    """The module that holds a module, and the attribute that it is there."""
    holder, _, attribute = name.rpartition(".")
    return model.get_submodule(holder), attribute


def context_length(config: Any) -> int:
    """Positions of a model, tokens."""
    return int(getattr(config, "max_position_embeddings", None) or _NO_LIMIT)


def learned_positions(model: Any) -> int | None:
    """Rows of a model's table of positions, or None: it has none, such as with RoPE."""
    words = model.get_input_embeddings()
    tables = [
        module.num_embeddings
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Embedding) and module is not words and _is_of_positions(name)
    ]
    return min(tables, default=None)


def _is_of_positions(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "wpe" or "position" in last


@dataclass
class _Output(ModelOutput):
    """What a backbone gives, with every field that a head's forward may pass on."""

    last_hidden_state: Tensor | None = None
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    cross_attentions: None = None
    router_logits: None = None


class _Given(nn.Module):
    """In the place of a backbone: its final hidden states are what it is given as embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)


def _without_hooks(module: nn.Module) -> Any:
    """A shallow copy of a module and of those below it; parameters are shared, hooks left out."""
    new = copy.copy(module)
    new._modules = {
        name: None if child is None else _without_hooks(child)
        for name, child in module._modules.items()
    }
    for name in _HOOKS:
        setattr(new, name, OrderedDict())
    return new


def _stack(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The module that holds the layers, and the layers."""
    for holder in _outermost_first(model.base_model):
        for child in holder.children():
            if isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers:
                return holder, child
    raise ValueError(
        f"{type(model).__name__} has no list of its {model.config.num_hidden_layers} layers"
    )


def _outermost_first(module: nn.Module) -> Iterator[nn.Module]:
    queue = [module]
    while queue:
        found = queue.pop(0)
        yield found
        queue += found.children()


def _name_of(model: nn.Module, wanted: Any) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
