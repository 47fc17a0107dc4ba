"""MDLM and BD3LM: layout + noise + model -> summed loss and counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.losses import masked_cross_entropy, taught_cross_entropy
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.runs import index_in_run, run_index
from a2d_ray.diffusion.verifying import ar_predictors, clean_copies

Backbone = Callable[[Tensor, Layout], Tensor]
"""(ids [R, T], layout) -> final hidden states [R, T, H] under the attention predicate."""


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """What is read off the model and what it is compared with.

    Attributes:
        mask_id: id of the mask token.
        keeps_mask_logit: whether the mask token competes with the others, as in the public recipe;
            its logit is -inf otherwise.
        right_shift: the logit at i-1 predicts token i (and the first one itself).
        ar_weight: weight of the AR loss of the clean stream, per target, beside the diffusion loss.
        confidence_weight: weight of the entropy where a masked token is predicted rightly.
        draft_target: what masked targets learn: the ``labels``, or where there is one, the
            distribution of the AR mode (``ar``; needs a layout with `ar_targets`).
        is_compiled: whether what follows the logits is compiled.
    """

    mask_id: int
    keeps_mask_logit: bool = False
    right_shift: bool = False
    ar_weight: float = 0.0
    confidence_weight: float = 0.0
    draft_target: Literal["labels", "ar"] = "labels"
    is_compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over a micro-batch; one optimizer step divides by the targets of the whole step.

    Attributes:
        loss: weighted cross-entropy, nats, differentiable scalar; with the weighted AR loss and
            the weighted entropies.
        num_targets: target tokens summed over the views (the denominator), int64 scalar.
        ar_nats: cross-entropy of the AR targets, unweighted, detached scalar.
    """

    loss: Tensor
    num_targets: Tensor
    ar_nats: Tensor


def noised_ids(layout: Layout, noise: Noise, mask_id: int) -> Tensor:
    """xt: the ids of every stream with the masked tokens replaced, int64 [R, T]."""
    return torch.where(noise.is_masked_RT, mask_id, layout.ids_RT)


def diffusion_loss(
    layout: Layout,
    noise: Noise,
    backbone: Backbone,
    head: Head,
    spec: LossSpec,
) -> LossSums:
    """Weighted cross-entropy of x0 at the masked targets, given xt (and x0 for BD3LM).

    The layout decides the objective: it says which streams exist and who sees whom.

    Args:
        layout: streams and blocks of R packed rows.
        noise: masked targets and their weights.
        backbone: the model without its head, attending as `masks.may_attend` says.
        head: the model's head, see `head_loss.Head`.
        spec: which logits are read.

    Source: MDLM, arXiv 2406.07524; BD3LM, arXiv 2503.09573.
    """
    hidden_RTH = backbone(noised_ids(layout, noise, spec.mask_id), layout)
    loss = masked_loss(layout, noise, hidden_RTH, head, spec)
    ar_nats = torch.zeros_like(loss.detach())
    if spec.ar_weight:
        each_view = _ar_loss(layout, hidden_RTH, head, spec)
        loss = loss + spec.ar_weight * layout.stream_RT.max() * each_view
        ar_nats = each_view.detach()
    return LossSums(loss=loss, num_targets=layout.num_targets, ar_nats=ar_nats)


def masked_loss(
    layout: Layout, noise: Noise, hidden_RTH: Tensor, head: Head, spec: LossSpec
) -> Tensor:
    """Weighted cross-entropy of the masked targets with what they learn, summed; float32 scalar."""
    picked = noise.is_masked_RT
    taught = torch.zeros_like(picked)
    if spec.draft_target == "ar":
        copy_RT = clean_copies(layout, picked & (layout.position_RT > 0))
        taught = copy_RT >= 0

    def read(picked_RT: Tensor) -> Tensor:
        return hidden_RTH[predictors(layout, picked_RT) if spec.right_shift else picked_RT]

    labelled = picked & ~taught
    loss, _ = masked_cross_entropy(
        read(labelled),
        head,
        layout.ids_RT[labelled],
        noise.weight_RT[labelled],
        None if spec.keeps_mask_logit else spec.mask_id,
        confidence_weight=spec.confidence_weight,
        is_compiled=spec.is_compiled,
    )
    if spec.draft_target == "labels":
        return loss
    teacher_NH = hidden_RTH[ar_predictors(copy_RT)]
    taught_loss, _ = taught_cross_entropy(
        read(taught),
        teacher_NH,
        head,
        noise.weight_RT[taught],
        spec.mask_id,
        is_compiled=spec.is_compiled,
    )
    return loss + taught_loss


def _ar_loss(layout: Layout, hidden_RTH: Tensor, head: Head, spec: LossSpec) -> Tensor:
    """Next-token cross-entropy of the clean stream's targets, summed."""
    picked = layout.is_ar_target_RT
    labels = layout.ids_RT[picked]
    weight = torch.ones_like(labels, dtype=torch.float32)
    hidden = hidden_RTH[predictors(layout, picked)]
    return masked_cross_entropy(
        hidden, head, labels, weight, spec.mask_id, is_compiled=spec.is_compiled
    )[0]


def predictors(layout: Layout, picked_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the token before each picked one in its stream; a first one is its own."""
    row_N, column_N = picked_RT.nonzero(as_tuple=True)
    row_RT = torch.arange(len(layout.ids_RT), device=row_N.device)[:, None].expand_as(picked_RT)
    keys = (row_RT, layout.doc_RT, layout.stream_RT)
    index_M = index_in_run(run_index(*(key.flatten() for key in keys)))
    is_later_N = index_M.view_as(picked_RT)[row_N, column_N] > 0
    return row_N, column_N - is_later_N.long()
