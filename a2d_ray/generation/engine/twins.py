"""The engine's own view of a model: same weights, modules with fewer and faster operations.

A twin is made of a transformers module and computes what it computes; it replaces the module in a
shallow copy of the model, and the model itself stays as it is. Every linear layer on a CPU gets
its weight packed once for oneDNN, which `F.linear` would do again in every call (1.4 times faster
for 32 tokens, 2 times for 8). The modules of the table are fused as well. What is not in the
table runs as transformers wrote it.

N tokens, H query heads, K key/value heads, d head width.
"""

import copy
import ctypes
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from a2d_ray.generation.engine.attention import ENGINE_ATTENTION, Round
from a2d_ray.models.gated_lora import NoiseGate, gate_of, gated_linear

# Prefixes of transformers' classes whose Attention, MLP and RMSNorm compute what the twins do.
FUSED_PREFIXES = ("Llama", "Mistral", "Ministral", "Granite", "Qwen2", "Qwen3")
SILU = ("SiLU", "SiLUActivation")

_known: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]]" = weakref.WeakKeyDictionary()


def inference_twin(model: nn.Module) -> Any:
    """The engine's view of an A2D model; kept until the model's weights change or it is gone."""
    stamp = tuple((p.data_ptr(), p.dtype, _version(p)) for p in model.parameters())
    known = _known.get(model)
    if known is None or known[0] != stamp:
        if known is not None:
            del _known[model], known  # before the next one takes memory
            _return_free_memory()
        config: Any = copy.copy(model.config)
        config._attn_implementation = ENGINE_ATTENTION
        with torch.no_grad():
            known = _known[model] = (stamp, _twin(model, model.config, config, gate_of(model)))
    return known[1]


def _return_free_memory() -> None:
    """Gives pages that glibc holds free back to the system.

    Packed weights that are replaced leave holes between what lives on. The holes are not reused as
    a whole: without this, reinforcement learning of 135M parameters grew by 0.4 GB per update.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def is_fused(prefix: str) -> bool:
    """Whether modules of transformers' classes with this prefix are fused here."""
    return prefix in FUSED_PREFIXES


def _version(parameter: Tensor) -> int:
    return -1 if parameter.is_inference() else parameter._version


def _twin(module: nn.Module, old_config: Any, new_config: Any, gate: NoiseGate | None) -> nn.Module:
    """The twin of a module, or a shallow copy of it with twins below."""
    made = _make_twin(module, gate)
    if made is not None:
        return made
    new = copy.copy(module)
    new._modules = {
        name: None if child is None else _twin(child, old_config, new_config, gate)
        for name, child in module._modules.items()
    }
    if getattr(module, "config", None) is old_config:
        new.config = new_config
    return new


def _make_twin(module: nn.Module, gate: NoiseGate | None) -> nn.Module | None:
    name = type(module).__name__
    kind = next((name[len(p) :] for p in FUSED_PREFIXES if name.startswith(p)), None)
    is_plain = all(_is_plain(child) for child in module.children() if _is_linear(child))
    if kind == "Attention" and is_plain:
        return FusedAttention(module, gate)
    if kind == "MLP" and is_plain and type(module.act_fn).__name__ in SILU:
        return FusedMLP(module, gate)
    if kind == "RMSNorm":
        return FusedRMSNorm(module)
    if _is_plain(module):
        return PackedLinear(module, gate=gate)
    return module if gated_linear(module) is not None else None  # its hooks stay with it


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features")


def _is_plain(module: nn.Module) -> bool:
    """Whether a linear layer holds W itself: subclasses may hold packed 4 bits, for example."""
    adapted = gated_linear(module)
    return type(module if adapted is None else adapted.base) is nn.Linear


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs such weights on this CPU: bfloat16 needs AVX-512."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


class PackedLinear(nn.Module):
    """Linear layers of one input, their outputs side by side: x [..., I] -> [..., sum of O].

    Gated adapters of the layers stay beside the packed weights, and act at noised tokens.
    """

    def __init__(self, *linears: Any, gate: NoiseGate | None = None) -> None:
        super().__init__()
        self._gate = gate
        self._adapters = _stacked_adapters(linears)
        weights = [linear.weight.detach() for linear in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        self.is_packed = weight.device.type == "cpu" and _can_pack(weight.dtype)
        if self.is_packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        if self.is_packed:
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        else:
            y = functional.linear(x, self.weight, self.bias)
        rows_M = self._adapted_rows
        if rows_M is not None:
            a_RI, b_OR = self._adapters  # type: ignore[misc]
            x_MI = x.reshape(-1, x.shape[-1])[rows_M]
            y.view(-1, y.shape[-1]).index_add_(0, rows_M, x_MI @ a_RI.T @ b_OR.T)
        return y

    @property
    def _adapted_rows(self) -> Tensor | None:
        """Tokens at which adapters act now."""
        return None if self._adapters is None or self._gate is None else self._gate.rows

    def silu(self, x: Tensor) -> Tensor:
        """silu(x W^T + b)."""
        if not self.is_packed or self._adapted_rows is not None:
            return functional.silu(self(x))
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """(x W^T + b) * factor."""
        if not self.is_packed or self._adapted_rows is not None:
            return self(x) * factor
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, self.bias, "mul")


def _stacked_adapters(linears: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """The gated adapters of layers side by side as one, or None where no layer has one.

    Returns:
        A [sum of r, I], and B times its scaling [sum of O, sum of r].
    """
    parts = [gated_linear(linear) for linear in linears]
    if not any(parts):
        return None
    ups = [
        linear.weight.new_zeros(len(linear.weight), 0) if part is None else part.b_Or * part.scaling
        for linear, part in zip(linears, parts, strict=True)
    ]
    a_RI = torch.cat([part.a_rI for part in parts if part is not None])
    return a_RI.detach(), torch.block_diag(*ups).detach()


class FusedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), both products' second operations inside the products."""

    def __init__(self, mlp: Any, gate: NoiseGate | None) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            PackedLinear(linear, gate=gate)
            for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the module that it was made of."""
        return self.down(self.up.times(x, self.gate.silu(x)))


class FusedRMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight.detach()
        self.eps = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """As the module that it was made of."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FusedAttention(nn.Module):
    """One product for queries, keys and values; one rotation for queries and keys."""

    def __init__(self, attention: Any, gate: NoiseGate | None) -> None:
        super().__init__()
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = PackedLinear(*linears, gate=gate)
        self.out = PackedLinear(attention.o_proj, gate=gate)
        self.dim = attention.head_dim
        self.scale = attention.scaling
        self.num_heads = attention.q_proj.out_features // self.dim
        self.num_key_heads = attention.k_proj.out_features // self.dim
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.norms = [FusedRMSNorm(norm) for norm in norms if norm is not None]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        ragged: Round,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """As the module that it was made of: [1, N, hidden] -> [1, N, hidden]."""
        num_rotated = self.num_heads + self.num_key_heads
        qkv_NHd = self.qkv(hidden_states)[0].view(-1, num_rotated + self.num_key_heads, self.dim)
        qk_NHd = qkv_NHd[:, :num_rotated]
        if self.norms:
            parts = qk_NHd.split([self.num_heads, self.num_key_heads], dim=1)
            qk_NHd = torch.cat([norm(x) for norm, x in zip(self.norms, parts, strict=True)], dim=1)
        qk_NHd = ragged.rotate(qk_NHd, *position_embeddings)
        attended_NHd = ragged.attend(
            qk_NHd[:, : self.num_heads],
            qk_NHd[:, self.num_heads :],
            qkv_NHd[:, num_rotated:],
            self.scale,
        )
        return self.out(attended_NHd.flatten(1)[None]), None
