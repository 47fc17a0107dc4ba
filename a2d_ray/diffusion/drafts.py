"""How often drafts agree with the AR mode, and how many tokens of a block that gives.

A *draft* is what a mask behind a clean prefix predicts in place. Fill behind an answer is not
counted: nothing verifies it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.losses import likeliest
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import Backbone, noised_ids
from a2d_ray.diffusion.reads import predictors
from a2d_ray.diffusion.runs import index_in_run, run_index
from a2d_ray.diffusion.verifying import ar_predictors, clean_copies


@dataclass(frozen=True, kw_only=True)
class DraftSums:
    """Sums that add up over micro-batches and ranks; J is the block size.

    Attributes:
        agreed_J: drafts at each offset of a block that equal the AR mode's choice, float64.
        drafted_J: drafts at each offset, float64.
        accepted: tokens that one forward would give, summed over blocks, float64 scalar.
        num_blocks: blocks with a target, float64 scalar.
    """

    agreed_J: Tensor
    drafted_J: Tensor
    accepted: Tensor
    num_blocks: Tensor


@torch.no_grad()
def draft_sums(
    rows: Sequence[PackedRow],
    spec: LayoutSpec,
    backbone: Backbone,
    head: Head,
    *,
    mask_id: int,
    device: torch.device,
) -> DraftSums:
    """How far drafts follow the AR mode: one forward with every target masked, argmax by argmax.

    It is counted as rule ``speculate`` accepts: the first mask of a block stands where the AR
    mode's own choice will be, and its prediction is thrown away; the drafts behind it are accepted
    while each equals the AR mode's choice. A block gives 1 + the length of that run. A last block
    that is short gives no more than its tokens.

    Teacher-forced: the AR mode's choices are read behind the labels, not behind its own choices,
    so decoding gives other figures as far as the model's answers differ from the labels.

    Args:
        rows: R packed rows.
        spec: layout of the objective: bd3lm with `causal_clean`; its views are replaced by 1.
        backbone, head: as for `diffusion_loss`.
        mask_id: id of the mask token; never a candidate.
        device: where the model is.

    Source: TiDAR (arXiv 2511.08923) for drafting and verifying with one model.
    """
    layout = build_layout(rows, replace(spec, views=1, ar_targets=True))
    epoch_R = torch.zeros(len(rows), dtype=torch.int64)
    noise = draw_noise(layout, NoiseSpec(kind="full"), seed=0, epoch_R=epoch_R).to(device)
    layout = layout.to(device)
    hidden_RTH = backbone(noised_ids(layout, noise, mask_id), layout)
    copy_RT = clean_copies(layout, noise.is_masked_RT)
    drafted = copy_RT >= 0
    read = predictors(layout, drafted) if spec.right_shift else drafted
    draft_N = likeliest(hidden_RTH[read], head, mask_id)
    choice_N = likeliest(hidden_RTH[ar_predictors(copy_RT)], head, mask_id)
    return _sums(layout, drafted, draft_N == choice_N, spec.block_size)


def _sums(layout: Layout, drafted_RT: Tensor, agrees_N: Tensor, block_size: int) -> DraftSums:
    row_N = drafted_RT.nonzero(as_tuple=True)[0]
    block_N = run_index(row_N, layout.doc_RT[drafted_RT], layout.block_RT[drafted_RT])
    rank_N = index_in_run(block_N)
    has_choice_N = layout.position_RT[drafted_RT] > 0  # nothing predicts a document's first token

    def by_rank(flag_N: Tensor) -> Tensor:
        return torch.bincount(rank_N, flag_N.double(), minlength=block_size).cpu()

    size_G = torch.bincount(block_N)
    refused = ~agrees_N & (rank_N > 0)
    accepted_G = size_G.scatter_reduce(0, block_N[refused], rank_N[refused], "amin")
    return DraftSums(
        agreed_J=by_rank(agrees_N & has_choice_N),
        drafted_J=by_rank(has_choice_N),
        accepted=accepted_G.sum().double().cpu(),
        num_blocks=torch.tensor(float(size_G.numel()), dtype=torch.float64),
    )
