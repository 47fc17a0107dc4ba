"""MDLM and BD3LM: layout + noise + model -> summed loss and counts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.losses import masked_cross_entropy
from a2d_ray.diffusion.noise import Noise

Backbone = Callable[[Tensor, Layout], Tensor]
"""(ids [R, T], layout) -> final hidden states [R, T, H] under the attention predicate."""


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over a micro-batch; one optimizer step divides by the targets of the whole step.

    Attributes:
        loss: weighted cross-entropy, nats, differentiable scalar.
        num_targets: target tokens summed over the views (the denominator), int64 scalar.
    """

    loss: Tensor
    num_targets: Tensor


def noised_ids(layout: Layout, noise: Noise, mask_id: int) -> Tensor:
    """xt: the ids of every stream with the masked tokens replaced, int64 [R, T]."""
    return torch.where(noise.is_masked_RT, mask_id, layout.ids_RT)


def diffusion_loss(
    layout: Layout,
    noise: Noise,
    backbone: Backbone,
    head_VH: Tensor,
    *,
    mask_id: int,
) -> LossSums:
    """Weighted cross-entropy of x0 at the masked targets, given xt (and x0 for BD3LM).

    The layout decides the objective: it says which streams exist and who sees whom.

    Args:
        layout: streams and blocks of R packed rows.
        noise: masked targets and their weights.
        backbone: the model without its head, attending as `masks.may_attend` says.
        head_VH: weight of the language-model head.
        mask_id: id of the mask token.

    Source: MDLM, arXiv 2406.07524; BD3LM, arXiv 2503.09573.
    """
    hidden_RTH = backbone(noised_ids(layout, noise, mask_id), layout)
    picked = noise.is_masked_RT
    loss, _ = masked_cross_entropy(
        hidden_RTH[picked],
        head_VH,
        layout.ids_RT[picked],
        noise.weight_RT[picked],
        mask_id,
    )
    return LossSums(loss=loss, num_targets=layout.num_targets)
