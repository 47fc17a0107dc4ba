"""Held-out NELBO with fixed draws: two evaluations of one model give the same bits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import Backbone, LossSpec, diffusion_loss

DRAW_SEED = 0x5EED


@dataclass(frozen=True, kw_only=True)
class NelboSums:
    """Sums that add up over micro-batches, draws and ranks.

    Attributes:
        nats: estimate of the negative evidence lower bound of the answers, float64 scalar.
        num_tokens: answer tokens that it counts; EOS fill is in `nats`, but not here.
    """

    nats: Tensor
    num_tokens: Tensor


@torch.no_grad()
def nelbo_sums(
    rows: Sequence[PackedRow],
    spec: LayoutSpec,
    backbone: Backbone,
    head_VH: Tensor,
    *,
    mask_id: int,
    draw: int,
    device: torch.device,
) -> NelboSums:
    """One fixed draw of the NELBO of packed rows: exact counts, two complementary views.

    Args:
        rows: R packed rows.
        spec: layout of the objective (its `views` are replaced by 2).
        backbone, head_VH: as for `diffusion_loss`.
        mask_id: id of the mask token; never a candidate here.
        draw: index of the draw; the same index gives the same masks.
        device: where the model is.

    Source: MDLM (arXiv 2406.07524) and LLaDA (2502.09992, eq. 6) for the bound.
    """
    layout = build_layout(rows, replace(spec, views=2))
    epoch_R = torch.full((len(rows),), draw)
    noise = draw_noise(layout, NoiseSpec(), seed=DRAW_SEED, epoch_R=epoch_R).to(device)
    sums = diffusion_loss(
        layout.to(device),
        noise,
        backbone,
        head_VH,
        LossSpec(mask_id=mask_id, right_shift=spec.right_shift),
    )
    num_tokens = torch.stack([row.is_target_C.sum() for row in rows]).sum()
    return NelboSums(nats=sums.loss.double().cpu() / 2, num_tokens=num_tokens)
