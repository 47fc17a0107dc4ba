"""The load-balancing loss of a mixture of experts, as transformers wrote it for the family."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from a2d_ray.models.counting import chosen_experts


def balance_loss(model: Any, routed: Sequence[Tensor]) -> Tensor:
    """How unevenly tokens go to experts, a scalar; see `has_balance_loss`.

    Args:
        model: A2D model.
        routed: what the router of each layer gave, [tokens, experts].

    Source: Switch Transformer, arXiv 2101.03961.
    """
    balance = _function(model)
    assert balance is not None and routed
    num_experts = routed[0].shape[-1]
    loss = balance(tuple(routed), num_experts, chosen_experts(model.config))
    return torch.as_tensor(loss)


def has_balance_loss(model: Any) -> bool:
    """Whether the family of a model has a load-balancing loss, and its routers can be read."""
    recorded = model.base_model._can_record_outputs or {}
    return _function(model) is not None and "router_logits" in recorded


def _function(model: Any) -> Callable[..., Any] | None:
    modules = (sys.modules[base.__module__] for base in type(model).__mro__)
    found = (getattr(module, "load_balancing_loss_func", None) for module in modules)
    return next((each for each in found if each is not None), None)
