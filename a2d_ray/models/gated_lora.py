"""Gated LoRA: adapters that act at noised tokens only, so that the AR mode stays what it was.

Clean tokens attend to clean tokens alone (`clean_attention: causal`), so what acts at noised tokens
reaches no clean one: the clean stream is bit for bit that of the frozen model.

Gated adapters are never merged. A checkpoint holds the frozen weights under their plain names, the
adapters beside them, and their section in the contract (`gated_adapters`).

Shapes: ... tokens, I in, O out, r rank.

Source: gated LoRA, arXiv 2507.11851.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from a2d_ray.config import LoraSection
from a2d_ray.models.adapters import add_adapters
from a2d_ray.models.parts import embedding_name, output_name, parent_of

_ATTRIBUTE = "a2d_gate"
_ADAPTER = "default"  # peft's name of the only one


class NoiseGate:
    """Which tokens of the present forward are noised; shared by all adapters of a model.

    Attributes:
        is_noised: bool, of the shape of the ids that the model is given; None: adapters are off.
    """

    def __init__(self) -> None:
        self.is_noised: Tensor | None = None
        self._rows: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> Tensor | None:
        """Indices of the noised tokens among all, int64; None where there are none."""
        if self.is_noised is None:
            return None
        if self._rows is None or self._rows[0] is not self.is_noised:  # once per forward
            self._rows = (self.is_noised, self.is_noised.flatten().nonzero()[:, 0])
        return self._rows[1] if len(self._rows[1]) else None

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """The forward hook of an adapter: what it adds [..., O], zero where the gate is shut."""
        if self.is_noised is None:
            return torch.zeros_like(output)
        return torch.where(self.is_noised[..., None], output, 0)

    @contextmanager
    def opened(self, is_noised: Tensor | None, rows: Tensor | None = None) -> Iterator[None]:
        """Within it, the adapters act at these tokens; None: at none.

        `rows` are their indices, where the caller knows them: to look for them waits for a device.
        With gradients they go on doing so: checkpointed layers run again in the backward pass.
        """
        self.is_noised = is_noised
        if is_noised is not None and rows is not None:
            self._rows = (is_noised, rows)
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                self.is_noised = None


@dataclass(frozen=True, kw_only=True)
class GatedLinear:
    """A linear layer with a gated adapter: y = base(x) + is_noised * scaling * (x A^T) B^T.

    Attributes:
        base: the frozen layer.
        a_rI: A.
        b_Or: B.
        scaling: alpha / r.
    """

    base: Any
    a_rI: Tensor
    b_Or: Tensor
    scaling: float


def install_gate(model: Any) -> NoiseGate:
    """Puts one shut gate behind all adapters of a model with LoRA; `gate_of` finds it again."""
    gate = NoiseGate()
    for layer in _lora_layers(model).values():
        layer.lora_B[_ADAPTER].register_forward_hook(gate)
    setattr(model, _ATTRIBUTE, gate)
    return gate


def gate_of(model: Any) -> NoiseGate | None:
    """The gate of a model's adapters, or None: it has no gated adapters."""
    return getattr(model, _ATTRIBUTE, None)


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Within it, the layers of a model with LoRA are those of the frozen one."""
    layers = _lora_layers(model).values()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def gated_linear(layer: Any) -> GatedLinear | None:
    """The parts of a linear layer with an adapter, or None: it has none."""
    if _ADAPTER not in getattr(layer, "lora_B", ()):
        return None
    return GatedLinear(
        base=layer.base_layer,
        a_rI=layer.lora_A[_ADAPTER].weight,
        b_Or=layer.lora_B[_ADAPTER].weight,
        scaling=layer.scaling[_ADAPTER],
    )


def gated_linears(model: Any) -> dict[str, GatedLinear]:
    """The adapted linear layers of a model, by the plain model's module names."""
    found = {name: gated_linear(layer) for name, layer in _lora_layers(model).items()}
    return {name: parts for name, parts in found.items() if parts is not None}


def add_gated_adapters(
    model: Any, lora: LoraSection, *, mask_id: int, base: str, seed: int = 0
) -> Any:
    """As `add_adapters`, with a gate."""
    adapted = add_adapters(model, lora, mask_id=mask_id, base=base, seed=seed)
    install_gate(model)
    return adapted


def settle_mask_row(model: Any) -> None:
    """Writes the mask token's learned row into the embedding, which becomes a plain one again.

    Clean text has no mask, and its logit is never read, so the AR mode stays what it is.
    """
    for table in (embedding_name(model), output_name(model)):
        parent, name = parent_of(model, table)
        adapter = getattr(getattr(parent, name), "token_adapter", None)
        if adapter is not None:  # an untied head has none
            adapter.merge()
            setattr(parent, name, adapter.base_layer)


def settled_copy(model: Any) -> Any:
    """A copy of a model in training that an engine can decode; the model stays as it is."""
    copied = copy.deepcopy(model)
    settle_mask_row(copied)
    return copied


def _lora_layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_B")}
