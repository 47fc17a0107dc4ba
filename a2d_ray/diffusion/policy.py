"""Policy gradients: rewards -> advantages; roll-outs and advantages -> a clipped loss.

Roll-outs are the answers of a layout's rows, one row each. The likelihood of an answer is exact
where the layout has the AR mode's targets; else it is the NELBO's estimate with the given noise.

R rows, T tokens of a row, N terms (tokens), U units (what has an importance ratio of its own), S
sequences of a group.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.diffusion.losses import label_logprobs
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.objectives import Backbone, LossSpec, masked_loss, noised_ids, reads_of
from a2d_ray.diffusion.reads import predictors
from a2d_ray.diffusion.tensors import Tensors

FIGURES = ("units", "ratio", "gap", "clipped", "kl", "tokens", "entropy", "draft_nats", "drafts")
"""What `PolicySums.figures` holds; the second to fifth are sums over units."""


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What an update is limited by.

    Attributes:
        ratio: of every ``token``, or of the whole ``sequence``: the geometric mean of its tokens'.
        clip_low, clip_high: ratios outside 1 - clip_low ... 1 + clip_high teach no more.
        kl_weight: of the divergence from a reference model.
        draft_weight: of the diffusion loss of the same tokens (exact likelihoods only).
    """

    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.0
    draft_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Credit(Tensors):
    """What the roll-outs of a layout have earned.

    Attributes:
        advantage_R: float32.
        old_RT: log-probability of each clean answer token when it was drawn, float32; not read
            where the likelihood is the NELBO's.
    """

    advantage_R: Tensor
    old_RT: Tensor


@dataclass(frozen=True, kw_only=True)
class PolicySums:
    """Sums over a micro-batch; one step divides by the targets of the whole step.

    Attributes:
        loss: differentiable scalar, times the number of views, as targets are counted.
        figures: detached, float64, in the order of `FIGURES`.
    """

    loss: Tensor
    figures: Tensor


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The log-likelihood of each answer as a sum of terms.

    Attributes:
        logp_N: float32, differentiable.
        entropy_N: of the distribution that each is read from, nats, detached.
        row_N: the answer's row.
        picked: row and column of each in the layout.
    """

    logp_N: Tensor
    entropy_N: Tensor
    row_N: Tensor
    picked: tuple[Tensor, Tensor]


def group_advantages(reward_GS: Tensor, *, is_scaled: bool = False) -> Tensor:
    """How much better each answer is than its group's mean, float32 [G, S].

    Args:
        reward_GS: rewards of the S answers to each of G prompts; NaN: there is none. Such an answer
            counts in no mean, and its advantage is 0.
        is_scaled: divide by the group's standard deviation, as GRPO first did. It makes easy and
            hard prompts count more than those in between.

    Source: GRPO, arXiv 2402.03300; without the division Dr. GRPO, arXiv 2503.20783.
    """
    is_there = ~reward_GS.isnan()
    centred = reward_GS - reward_GS.nanmean(1, keepdim=True)
    centred = torch.where(is_there, centred, 0.0)
    if is_scaled:
        number = is_there.sum(1, keepdim=True).clamp(min=1)
        deviation = (centred.square().sum(1, keepdim=True) / number).sqrt()
        centred = centred / deviation.clamp(min=1e-6)
    return centred.float()


def without_fill(layout: Layout, length_R: Tensor) -> Layout:
    """The layout whose fill behind the answers is no target: it was never drawn.

    Args:
        layout: of rows of one document.
        length_R: tokens of each document, through the end-of-turn token.
    """
    is_drawn_RT = layout.position_RT < length_R[:, None]
    return replace(layout, is_target_RT=layout.is_target_RT & is_drawn_RT)


def mask_fill(layout: Layout, noise: Noise, length_R: Tensor) -> Noise:
    """The noise with all fill masked, weight 0: what follows an answer shows where it ends."""
    is_fill_RT = (layout.position_RT >= length_R[:, None]) & (layout.doc_RT != PAD_DOC)
    is_fill_RT &= layout.stream_RT > 0
    return Noise(is_masked_RT=noise.is_masked_RT | is_fill_RT, weight_RT=noise.weight_RT)


def policy_loss(
    layout: Layout,
    noise: Noise,
    credit: Credit,
    backbone: Backbone,
    head: Head,
    spec: PolicySpec,
    reading: LossSpec,
    reference: tuple[Backbone, Head] | None = None,
) -> PolicySums:
    """The clipped surrogate, summed over tokens, and beside it the drafts' loss.

        loss = sum_t -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) + kl_weight kl_t

    Every token of a step weighs the same, so long answers are neither favoured nor spared. With a
    sequence's ratio r, each of its tokens has that one. At r = 1 the gradient is that of
    REINFORCE: -A grad log p(answer).

    Args:
        layout: of rows of one roll-out each.
        noise: masks of the noised streams.
        credit: advantages and old log-probabilities.
        backbone: the model without its head, attending as `masks.may_attend` says.
        head: final hidden states to logits; see `head_loss.Head`.
        spec: the limits.
        reading: which logits are read.
        reference: backbone and head of the start; needed where `kl_weight` > 0.

    Source: PPO, arXiv 1707.06347; tokens weighed alike and clip-higher: DAPO, 2503.14476; ratio of
    a sequence: GSPO, 2507.18071; the bound as its likelihood: GDPO, 2510.08554; the estimate of the
    KL divergence: http://joschu.net/blog/kl-approx.html (k3).
    """
    is_exact = bool(layout.is_ar_target_RT.any())
    ids_RT = noised_ids(layout, noise, reading.mask_id)
    hidden_RTH = backbone(ids_RT, layout)
    terms = answer_terms(layout, noise, hidden_RTH, head, reading.mask_id)
    old_N = credit.old_RT[terms.picked] if is_exact else terms.logp_N.detach()
    ref_N = None
    if reference is not None:
        ref_backbone, ref_head = reference
        with torch.no_grad():
            ref_RTH = ref_backbone(ids_RT, layout)
            ref = answer_terms(layout, noise, ref_RTH, ref_head, reading.mask_id)
        ref_N = ref.logp_N
    loss, figures = _surrogate(terms, old_N, ref_N, layout, credit.advantage_R, spec)
    loss = loss * layout.stream_RT.max()
    draft_nats = torch.zeros_like(loss)
    if is_exact and spec.draft_weight:
        draft_nats = masked_loss(reads_of(layout, noise, reading), hidden_RTH, head, reading)
        loss = loss + spec.draft_weight * draft_nats
    entropies = [torch.tensor(float(len(terms.row_N))), terms.entropy_N.sum()]
    drafts = [draft_nats.detach(), layout.num_targets]
    more = torch.stack([value.double().cpu() for value in (*entropies, *drafts)])
    return PolicySums(loss=loss, figures=torch.cat([figures.double().cpu(), more]))


def answer_terms(
    layout: Layout, noise: Noise, hidden_RTH: Tensor, head: Head, mask_id: int
) -> Terms:
    """The log-likelihood of each row's answer, term by term.

    Exact: log p(token | what is before it), read from the clean stream. Else, of each masked
    token, weight x log p(token | what is not masked) / views: the negative of the NELBO's estimate.
    """
    picked_RT = layout.is_ar_target_RT
    is_exact = bool(picked_RT.any())
    if not is_exact:
        picked_RT = noise.is_masked_RT & layout.is_target_RT
    read = predictors(layout, picked_RT) if is_exact else picked_RT
    logp_N, entropy_N = label_logprobs(hidden_RTH[read], head, layout.ids_RT[picked_RT], mask_id)
    if not is_exact:
        logp_N = logp_N * noise.weight_RT[picked_RT] / layout.stream_RT.max()
    row_N, column_N = picked_RT.nonzero(as_tuple=True)
    return Terms(logp_N=logp_N, entropy_N=entropy_N, row_N=row_N, picked=(row_N, column_N))


def _surrogate(
    terms: Terms,
    old_N: Tensor,
    ref_N: Tensor | None,
    layout: Layout,
    advantage_R: Tensor,
    spec: PolicySpec,
) -> tuple[Tensor, Tensor]:
    """The summed loss, and its first `FIGURES`."""
    logp_U, old_U, row_U = terms.logp_N, old_N, terms.row_N
    ref_U = old_U if ref_N is None else ref_N
    size_U = torch.ones_like(old_U)
    if spec.ratio == "sequence":
        size_U = layout.is_target_RT.sum(1).to(old_U.dtype) / layout.stream_RT.max()
        row_U = torch.arange(len(size_U), device=row_U.device)

        def per_token(value_N: Tensor) -> Tensor:
            return torch.zeros_like(size_U).index_add(0, terms.row_N, value_N) / size_U

        logp_U, old_U, ref_U = per_token(logp_U), per_token(old_U), per_token(ref_U)
    ratio_U = (logp_U - old_U).exp()
    kept_U = ratio_U.clamp(1 - spec.clip_low, 1 + spec.clip_high)
    advantage_U = advantage_R[row_U]
    gain_U = torch.minimum(ratio_U * advantage_U, kept_U * advantage_U)
    away_U = ref_U - logp_U
    kl_U = away_U.exp() - away_U - 1
    loss = -(size_U * gain_U).sum()
    if ref_N is not None:
        loss = loss + spec.kl_weight * (size_U * kl_U).sum()
    is_clipped_U = (ratio_U * advantage_U > kept_U * advantage_U).float()
    figures = torch.stack(
        [
            torch.ones_like(ratio_U).sum(),
            ratio_U.sum(),
            (logp_U - old_U).abs().sum(),
            is_clipped_U.sum(),
            (kl_U if ref_N is not None else torch.zeros_like(kl_U)).sum(),
        ]
    )
    return loss, figures.detach()
