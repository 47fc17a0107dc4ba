"""Analytic FLOPs of a training step, and the peak of the device, for the MFU.

A multiply-add counts as two. Forward: 2 per weight of the linear layers and token, 4 x heads x
head_dim per layer for each pair of tokens that may attend, 2 per weight of the head and masked
token. Backward: twice the forward. Recomputation does not count (model FLOPs of 2104.04473).
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.planning.devices import peak_tflops


def peak_flops(device: torch.device) -> float | None:
    """bf16 FLOP/s of a CUDA device by its name, or None where it is not known."""
    if device.type != "cuda":
        return None
    peak = peak_tflops(torch.cuda.get_device_name(device))
    return None if peak is None else 1e12 * peak


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of a model, per unit of work of a training step.

    Attributes:
        per_token: of the linear layers.
        per_pair: of a query and a key that may attend, over all layers.
        per_masked: of the head at a masked token.
    """

    per_token: float
    per_pair: float
    per_masked: float

    @classmethod
    def of(cls, model: Any) -> Self:
        """The costs of an A2D model."""
        linear = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
        config = model.config
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        return cls(
            per_token=3 * 2 * sum(m.weight.numel() for m in linear),
            per_pair=3 * 4 * config.num_hidden_layers * config.num_attention_heads * head_dim,
            per_masked=3 * 2 * config.hidden_size * config.vocab_size,
        )

    def step(self, num_tokens: float, num_pairs: float, num_masked: float) -> float:
        """FLOPs of a step: forward and backward."""
        return (
            self.per_token * num_tokens + self.per_pair * num_pairs + self.per_masked * num_masked
        )


def attended_pairs(layout: Layout) -> Tensor:
    """Pairs (query, key) of real tokens that may attend (`masks.may_attend`), int64 scalar."""
    is_real = layout.doc_RT != PAD_DOC
    row_RT = torch.arange(len(layout.ids_RT))[:, None].expand_as(layout.ids_RT)
    doc = layout.doc_RT[is_real]
    row = row_RT[is_real]
    stream = layout.stream_RT[is_real]
    block = layout.block_RT[is_real]
    if not doc.numel():
        return torch.zeros((), dtype=torch.int64)
    sizes = torch.zeros(
        (len(layout.ids_RT), int(doc.max()) + 1, int(stream.max()) + 1, int(block.max()) + 1),
        dtype=torch.int64,
    ).index_put((row, doc, stream, block), torch.ones_like(doc), accumulate=True)
    up_to = sizes[:, :, 0].cumsum(-1)  # clean tokens of this block and of earlier ones
    seen_clean = up_to[row, doc, block]
    is_noised = stream > 0
    own = sizes[row, doc, stream, block]
    before = seen_clean - sizes[row, doc, 0, block]
    return torch.where(is_noised, own + before, seen_clean).sum()
