"""Which clean token verifies a masked one.

The *AR mode* is the clean stream under causal attention: its logit at i-1 predicts token i. In a
layout with `ar_targets` every noised target has a clean copy, but the fill behind an answer.
"""

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.runs import index_in_run, run_index


def clean_copies(layout: Layout, picked_RT: Tensor) -> Tensor:
    """Column of the clean copy of each picked noised token, int64 [R, T]; -1: it has none.

    A document's clean stream comes first and holds its tokens from the first one on, so the copy's
    column is that of the document and the token's position.
    """
    device = layout.ids_RT.device
    row_RT = torch.arange(len(layout.ids_RT), device=device)[:, None].expand_as(layout.ids_RT)
    start_RT = index_in_run(run_index(row_RT.flatten(), layout.doc_RT.flatten())).view_as(row_RT)
    column_RT = torch.arange(row_RT.shape[1], device=device) - start_RT
    copy_RT = (column_RT + layout.position_RT).clamp(max=row_RT.shape[1] - 1)
    is_there = picked_RT & (layout.stream_RT[row_RT, copy_RT] == 0)
    for values in (layout.doc_RT, layout.block_RT, layout.position_RT):
        is_there &= values[row_RT, copy_RT] == values
    return torch.where(is_there, copy_RT, -1)


def ar_predictors(copy_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the clean token before each clean copy, whose logit is the AR mode's.

    Args:
        copy_RT: of `clean_copies`. A document's first token has none before it: what stands there
            is no choice of the AR mode.
    """
    row_N, column_N = (copy_RT >= 0).nonzero(as_tuple=True)
    return row_N, (copy_RT[row_N, column_N] - 1).clamp(min=0)
