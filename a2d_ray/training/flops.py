"""Analytic FLOPs of a training step, and the peak of the device, for the MFU.

A multiply-add counts as two. Forward: 2 per weight that a token is multiplied with, 2 x heads x
(key width + value width) per layer for each pair of tokens that may attend, 2 per weight of the
head and masked token. Backward: twice the forward. Recomputation does not count (model FLOPs of
2104.04473).
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.models.counting import attention_shapes, matrix_parameters
from a2d_ray.models.parts import head_parameters
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
        head = sum(p.numel() for p in head_parameters(model) if p.dim() >= 2)
        pair_products = sum(shape.pair_products for shape in attention_shapes(model))
        return cls(
            per_token=3 * 2 * matrix_parameters(model.base_model, model.config),
            per_pair=3 * 2 * pair_products,
            per_masked=3 * 2 * head,
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
