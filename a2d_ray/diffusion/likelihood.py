"""Held-out NELBO with fixed draws: two evaluations of one model give the same bits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.losses import token_scores
from a2d_ray.diffusion.noise import Noise, NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import Backbone, noised_ids
from a2d_ray.diffusion.reads import predictors
from a2d_ray.diffusion.runs import run_index

DRAW_SEED = 0x5EED
NUM_BINS = 5


@dataclass(frozen=True, kw_only=True)
class NelboSums:
    """Sums that add up over micro-batches, draws and ranks.

    Attributes:
        nats: estimate of the negative evidence lower bound of the answers, float64 scalar.
        num_tokens: answer tokens that it counts; EOS fill is in `nats`, but not here.
        by_ratio: float64 [3, NUM_BINS]: masked tokens, their cross-entropy (nats, unweighted) and
            how many the most likely token gets right, by the masked share of their block: bin b
            holds shares in (b, b + 1] / NUM_BINS.
    """

    nats: Tensor
    num_tokens: Tensor
    by_ratio: Tensor


@torch.no_grad()
def nelbo_sums(
    rows: Sequence[PackedRow],
    spec: LayoutSpec,
    backbone: Backbone,
    head: Head,
    *,
    mask_id: int,
    draw: int,
    device: torch.device,
) -> NelboSums:
    """One fixed draw of the NELBO of packed rows: exact counts, two complementary views.

    Args:
        rows: R packed rows.
        spec: layout of the objective (its `views` are replaced by 2).
        backbone, head: as for `diffusion_loss`.
        mask_id: id of the mask token; never a candidate here.
        draw: index of the draw; the same index gives the same masks.
        device: where the model is.

    Source: MDLM (arXiv 2406.07524) and LLaDA (2502.09992, eq. 6) for the bound.
    """
    layout = build_layout(rows, replace(spec, views=2, ar_targets=False))
    epoch_R = torch.full((len(rows),), draw)
    noise = draw_noise(layout, NoiseSpec(), seed=DRAW_SEED, epoch_R=epoch_R)
    picked_RT = noise.is_masked_RT
    ratio_N = masked_ratio(layout, noise)[picked_RT]
    weight_N = noise.weight_RT[picked_RT].double()
    layout = layout.to(device)
    noise = noise.to(device)
    hidden_RTH = backbone(noised_ids(layout, noise, mask_id), layout)
    picked = noise.is_masked_RT
    read_NH = hidden_RTH[predictors(layout, picked) if spec.right_shift else picked]
    loss_N, is_right_N = token_scores(read_NH, head, layout.ids_RT[picked], mask_id)
    loss_N = loss_N.double().cpu()
    is_right_N = is_right_N.double().cpu()
    bins = ((ratio_N * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
    values_3N = torch.stack([torch.ones_like(loss_N), loss_N, is_right_N])
    return NelboSums(
        nats=(loss_N * weight_N).sum() / 2,
        num_tokens=torch.stack([row.is_target_C.sum() for row in rows]).sum(),
        by_ratio=torch.zeros(3, NUM_BINS, dtype=torch.float64).index_add(1, bins, values_3N),
    )


def masked_ratio(layout: Layout, noise: Noise) -> Tensor:
    """Share of the targets of a token's noised block that are masked, float64 [R, T]."""
    row_RT = torch.arange(len(layout.ids_RT))[:, None].expand_as(layout.ids_RT)
    keys = (row_RT, layout.doc_RT, layout.stream_RT, layout.block_RT)
    group = run_index(*(key.flatten() for key in keys))

    def per_group(flag_RT: Tensor) -> Tensor:
        sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
        return sums.index_add(0, group, flag_RT.flatten().double())

    ratio = per_group(noise.is_masked_RT) / per_group(layout.is_target_RT).clamp(min=1)
    return ratio[group].view_as(layout.ids_RT)
