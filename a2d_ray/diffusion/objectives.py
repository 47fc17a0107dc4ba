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
from a2d_ray.diffusion.reads import Reads, plan_reads

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


def reads_of(layout: Layout, noise: Noise, spec: LossSpec) -> Reads:
    """What the loss of a micro-batch reads."""
    is_taught = spec.draft_target == "ar"
    return plan_reads(layout, noise, right_shift=spec.right_shift, is_taught=is_taught)


def diffusion_loss(
    layout: Layout,
    noise: Noise,
    backbone: Backbone,
    head: Head,
    spec: LossSpec,
    reads: Reads | None = None,
) -> LossSums:
    """Weighted cross-entropy of x0 at the masked targets, given xt (and x0 for BD3LM).

    The layout decides the objective: it says which streams exist and who sees whom.

    Args:
        layout: streams and blocks of R packed rows.
        noise: masked targets and their weights.
        backbone: the model without its head, attending as `masks.may_attend` says.
        head: the model's head, see `head_loss.Head`.
        spec: which logits are read.
        reads: `reads_of` these, where they were made before; None: they are made here.

    Source: MDLM, arXiv 2406.07524; BD3LM, arXiv 2503.09573.
    """
    hidden_RTH = backbone(noised_ids(layout, noise, spec.mask_id), layout)
    reads = reads_of(layout, noise, spec) if reads is None else reads
    loss = masked_loss(reads, hidden_RTH, head, spec)
    ar_nats = torch.zeros_like(loss.detach())
    if spec.ar_weight:
        each_view = _ar_loss(reads, hidden_RTH, head, spec)
        loss = loss + spec.ar_weight * layout.stream_RT.max() * each_view
        ar_nats = each_view.detach()
    return LossSums(loss=loss, num_targets=layout.num_targets, ar_nats=ar_nats)


def masked_loss(reads: Reads, hidden_RTH: Tensor, head: Head, spec: LossSpec) -> Tensor:
    """Weighted cross-entropy of the masked targets with what they learn, summed; float32 scalar."""
    hidden_MH = hidden_RTH.flatten(0, 1)
    loss, _ = masked_cross_entropy(
        hidden_MH.index_select(0, reads.labelled_L),
        head,
        reads.label_L,
        reads.weight_L,
        None if spec.keeps_mask_logit else spec.mask_id,
        confidence_weight=spec.confidence_weight,
        is_compiled=spec.is_compiled,
    )
    if spec.draft_target == "labels":
        return loss
    taught_loss, _ = taught_cross_entropy(
        hidden_MH.index_select(0, reads.taught_D),
        hidden_MH.detach().index_select(0, reads.teacher_D),
        head,
        reads.taught_weight_D,
        spec.mask_id,
        is_compiled=spec.is_compiled,
    )
    return loss + taught_loss


def _ar_loss(reads: Reads, hidden_RTH: Tensor, head: Head, spec: LossSpec) -> Tensor:
    """Next-token cross-entropy of the clean stream's targets, summed."""
    labels = reads.ar_label_A
    weight = torch.ones_like(labels, dtype=torch.float32)
    hidden = hidden_RTH.flatten(0, 1).index_select(0, reads.ar_A)
    return masked_cross_entropy(
        hidden, head, labels, weight, spec.mask_id, is_compiled=spec.is_compiled
    )[0]
