"""Which final hidden states a loss reads, and what it compares them with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.runs import index_in_run, run_index
from a2d_ray.diffusion.tensors import Tensors
from a2d_ray.diffusion.verifying import ar_predictors, clean_copies


@dataclass(frozen=True, kw_only=True)
class Reads(Tensors):
    """Places among a layout's R x T, int64; L labelled tokens, D taught drafts, A AR targets.

    Made from a layout on the host, they save a device from looking for what a mask marks, for which
    the host would wait.

    Attributes:
        labelled_L: whose logits predict masked targets.
        label_L: the targets' clean ids.
        weight_L: float32.
        taught_D, teacher_D: of drafts, and of the AR mode's logits that they learn.
        taught_weight_D: float32.
        ar_A: whose logits predict AR targets.
        ar_label_A: their clean ids.
    """

    labelled_L: Tensor
    label_L: Tensor
    weight_L: Tensor
    taught_D: Tensor
    teacher_D: Tensor
    taught_weight_D: Tensor
    ar_A: Tensor
    ar_label_A: Tensor


def plan_reads(
    layout: Layout, noise: Noise, *, right_shift: bool = False, is_taught: bool = False
) -> Reads:
    """What a micro-batch's loss reads.

    Args:
        layout: streams and blocks; with `ar_targets` where drafts are taught.
        noise: masked targets and their weights.
        right_shift: the logit at i-1 predicts token i.
        is_taught: masked targets learn the AR mode's distribution where there is one.
    """
    length = layout.ids_RT.shape[1]

    def place(row_N: Tensor, column_N: Tensor) -> Tensor:
        return row_N * length + column_N

    def read(picked_RT: Tensor) -> Tensor:
        if right_shift:
            return place(*predictors(layout, picked_RT))
        return picked_RT.flatten().nonzero()[:, 0]

    picked_RT = noise.is_masked_RT
    taught_RT = torch.zeros_like(picked_RT)
    teacher_D = layout.ids_RT.new_zeros(0)
    if is_taught:
        copy_RT = clean_copies(layout, picked_RT & (layout.position_RT > 0))
        taught_RT = copy_RT >= 0
        teacher_D = place(*ar_predictors(copy_RT))
    labelled_RT = picked_RT & ~taught_RT
    ar_RT = layout.is_ar_target_RT
    return Reads(
        labelled_L=read(labelled_RT),
        label_L=layout.ids_RT[labelled_RT],
        weight_L=noise.weight_RT[labelled_RT],
        taught_D=read(taught_RT),
        teacher_D=teacher_D,
        taught_weight_D=noise.weight_RT[taught_RT],
        ar_A=place(*predictors(layout, ar_RT)),
        ar_label_A=layout.ids_RT[ar_RT],
    )


def predictors(layout: Layout, picked_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the token before each picked one in its stream; a first one is its own."""
    row_N, column_N = picked_RT.nonzero(as_tuple=True)
    row_RT = torch.arange(len(layout.ids_RT), device=row_N.device)[:, None].expand_as(picked_RT)
    keys = (row_RT, layout.doc_RT, layout.stream_RT)
    index_M = index_in_run(run_index(*(key.flatten() for key in keys)))
    is_later_N = index_M.view_as(picked_RT)[row_N, column_N] > 0
    return row_N, column_N - is_later_N.long()
