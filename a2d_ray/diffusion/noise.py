"""How tokens are corrupted: which targets are masked in each view, and what they weigh.

Everything is a pure function of (seed, epoch, document id, view) and, while corruption warms up,
of `max_fraction`. See `a2d_ray.diffusion.randomness`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.randomness import uniform
from a2d_ray.diffusion.runs import first_of_run, run_index
from a2d_ray.diffusion.schedules import (
    alpha,
    complement_weight,
    nelbo_weight,
)
from a2d_ray.diffusion.tensors import Tensors

BERNOULLI_T_MIN = 1e-3
# Independent streams of random numbers.
_TOKEN, _BLOCK, _DOCUMENT, _TAIL, _SIZE, _FULL, _SHIFT = range(7)


@dataclass(frozen=True, kw_only=True)
class NoiseSpec:
    """The noise distribution.

    Attributes:
        kind: ``exact``: a uniform count of masked tokens per block; ``bernoulli``: independent
            tokens at a random level t; ``full``: every target, of one view.
        full_share: full: share of (document, epoch) pairs that are fully masked; the others are
            masked as by ``exact``.
        per: bernoulli: one level per document (``sequence``) or per ``block``.
        schedule: bernoulli: alpha(t), by its name in `schedules.SCHEDULES`.
        is_weighted: the NELBO's weights; otherwise 1.
    """

    kind: Literal["exact", "bernoulli", "full"] = "exact"
    full_share: float = 1.0
    per: Literal["sequence", "block"] = "block"
    schedule: str = "linear"
    is_weighted: bool = True


@dataclass(frozen=True, kw_only=True)
class Noise(Tensors):
    """Which tokens of a layout are masked, and the weight of their cross-entropy.

    Attributes:
        is_masked_RT: bool, true only at targets.
        weight_RT: float32, zero where not masked.
    """

    is_masked_RT: Tensor
    weight_RT: Tensor


def draw_noise(
    layout: Layout, spec: NoiseSpec, *, seed: int, epoch_R: Tensor, max_fraction: float = 1.0
) -> Noise:
    """Masks for every view of a layout.

    ``exact``: a block with m targets masks k ~ U{1..m} of them, stratified over the blocks of the
    document, and weighs each by m/k: the exact NELBO of the linear schedule. View 2 masks the
    other m-k; where k = m nothing is left and view 1 counts twice.

    ``bernoulli``: t = 1e-3 + (1 - 1e-3) u, each target masked with probability 1 - alpha(t) and
    weighed by -alpha'(t) / (1 - alpha(t)). View 2 masks the others.

    ``full``: every target is masked with weight 1, or, in documents that are not drawn to be fully
    masked, as by ``exact``. Either way the weights of a block of m targets sum to m in the mean, so
    a target of either kind weighs the same in a loss that is divided by the targets.

    Args:
        layout: streams and blocks.
        spec: distribution.
        seed: run seed.
        epoch_R: pass over the data that each row belongs to, int64 [R].
        max_fraction: below 1 (corruption warm-up) the masked share is scaled by it, every weight
            is 1, and view 2 masks as many other tokens as view 1 instead of all others. What
            ``full`` masks whole stays so: a draft always starts from masks alone.

    Returns:
        Masks and weights, [R, T].

    Source: LLaDA (arXiv 2502.09992) for k uniform; BD3LM (2503.09573) for levels per block;
    Stable-DiffCoder (2601.15892) for the warm-up.
    """
    picked = layout.is_target_RT.nonzero(as_tuple=True)
    targets = _Targets(layout, picked, seed, epoch_R)
    draw = _DRAWS[spec.kind]
    is_masked_N, weight_N = draw(targets, spec, max_fraction)
    if max_fraction < 1 or not spec.is_weighted:
        weight_N = targets.repeats(is_masked_N)
    is_masked_RT = torch.zeros_like(layout.is_target_RT)
    is_masked_RT[picked] = is_masked_N
    weight_RT = torch.zeros(is_masked_RT.shape, device=is_masked_RT.device)
    weight_RT[picked] = (weight_N * is_masked_N).float()
    return Noise(is_masked_RT=is_masked_RT, weight_RT=weight_RT)


def eos_tail_lengths(doc_id_D: Tensor, *, seed: int, epoch_D: Tensor, longest: int) -> Tensor:
    """Number of EOS targets that follow each MDLM document: uniform on 1..longest, int64 [D]."""
    zero_D = torch.zeros_like(doc_id_D)
    u = uniform(_TAIL, seed, epoch_D, doc_id_D, zero_D, zero_D)
    return 1 + (u * longest).long()


def draw_block_sizes(
    doc_id_D: Tensor, sizes: Sequence[int], *, seed: int, epoch_D: Tensor
) -> Tensor:
    """Block size of each document in this epoch: one of `sizes`, uniformly, int64 [D]."""
    zero_D = torch.zeros_like(doc_id_D)
    u = uniform(_SIZE, seed, epoch_D, doc_id_D, zero_D, zero_D)
    return torch.tensor(sizes)[(u * len(sizes)).long()]


def draw_block_shifts(
    doc_id_D: Tensor, block_size_D: Tensor, *, seed: int, epoch_D: Tensor
) -> Tensor:
    """By how much the first blocks of each document are shorter in this epoch, int64 [D].

    Uniform on 0 ... block size - 1, so that a block begins at every offset of an answer.
    """
    zero_D = torch.zeros_like(doc_id_D)
    u = uniform(_SHIFT, seed, epoch_D, doc_id_D, zero_D, zero_D)
    return (u * block_size_D).long()


class _Targets:
    """The N target tokens of a layout with their random numbers and their blocks.

    u_N: uniform per token, equal in all views. rank_N: its rank within the block.
    size_N: targets of the block (m). group_N: block index. copy_N: view of a document.
    """

    def __init__(
        self, layout: Layout, picked: tuple[Tensor, ...], seed: int, epoch_R: Tensor
    ) -> None:
        row = picked[0]
        self.doc_N = layout.doc_id_RT[picked]
        self.stream_N = layout.stream_RT[picked]
        self.block_N = layout.block_RT[picked]
        self.num_views = int(layout.stream_RT.max())
        self.seed = seed
        self.epoch_N = epoch_R[row]
        offset_N = layout.offset_RT[picked]
        self.u_N = uniform(_TOKEN, seed, self.epoch_N, self.doc_N, self.block_N, offset_N)
        self.copy_N = run_index(row, layout.doc_RT[picked], self.stream_N)  # one view of a document
        self.group_N = run_index(self.copy_N, self.block_N)
        self.rank_N = _rank_in_group(self.group_N, self.u_N)
        self.size_N = torch.bincount(self.group_N)[self.group_N]

    def block_level(self) -> Tensor:
        """One uniform number per block, stratified over the blocks of its document, [N]."""
        first_G = first_of_run(self.group_N)
        copy_G = self.copy_N[first_G]
        doc_G = self.doc_N[first_G]
        block_G = self.block_N[first_G]
        zero_G = torch.zeros_like(block_G)
        u_G = uniform(_BLOCK, self.seed, self.epoch_N[first_G], doc_G, block_G, zero_G)
        rank_G = _rank_in_group(copy_G, u_G)
        num_blocks_G = torch.bincount(copy_G)[copy_G]
        return ((rank_G + self.document_level()[first_G]) / num_blocks_G)[self.group_N]

    def document_level(self, kind: int = _DOCUMENT) -> Tensor:
        """One uniform number per document, [N]."""
        zero_N = torch.zeros_like(self.doc_N)
        return uniform(kind, self.seed, self.epoch_N, self.doc_N, zero_N, zero_N)

    def repeats(self, is_masked_N: Tensor) -> Tensor:
        """2 in view 1 of a block whose complement is empty, else 1; float64 [N]."""
        num_masked_N = torch.bincount(self.group_N, is_masked_N.double())[self.group_N]
        is_alone = (num_masked_N == self.size_N) & (self.stream_N == 1) & (self.num_views == 2)
        return 1.0 + is_alone.double()


def _draw_exact(targets: _Targets, spec: NoiseSpec, max_fraction: float) -> tuple[Tensor, Tensor]:
    size = targets.size_N
    rank = targets.rank_N
    count = (1 + (targets.block_level() * max_fraction * size).long()).clamp(max=size)
    limit = size if max_fraction >= 1 else 2 * count
    is_first = targets.stream_N == 1
    is_masked = torch.where(is_first, rank < count, (rank >= count) & (rank < limit))
    num_masked = torch.where(is_first, count, size - count)
    return is_masked, targets.repeats(is_masked) * size / num_masked.clamp(min=1)


def _draw_full(targets: _Targets, spec: NoiseSpec, max_fraction: float) -> tuple[Tensor, Tensor]:
    if targets.num_views > 1:
        raise ValueError("noise full leaves nothing for a second view: lay out one")
    is_masked, weight = _draw_exact(targets, spec, max_fraction)
    is_full = targets.document_level(_FULL) < spec.full_share
    return is_masked | is_full, torch.where(is_full, 1.0, weight)


def _draw_bernoulli(
    targets: _Targets, spec: NoiseSpec, max_fraction: float
) -> tuple[Tensor, Tensor]:
    level = targets.block_level() if spec.per == "block" else targets.document_level()
    is_first = targets.stream_N == 1
    return mask_independently(targets.u_N, level, spec.schedule, is_first, max_fraction)


_DRAWS = {"exact": _draw_exact, "bernoulli": _draw_bernoulli, "full": _draw_full}


def mask_independently(
    u: Tensor, level: Tensor, schedule: str, is_first: Tensor, max_fraction: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Bernoulli masks and NELBO weights at t = 1e-3 + (1 - 1e-3) level.

    Args:
        u: uniform numbers of the tokens.
        level: uniform number of each token's document or block, of the same shape.
        schedule: alpha(t); a token of view 1 is masked where u < 1 - alpha(t).
        is_first: view 1; elsewhere the complement is masked.
        max_fraction: scales the masked share.

    Returns:
        is_masked (bool) and weight, both of that shape.
    """
    t = BERNOULLI_T_MIN + (1 - BERNOULLI_T_MIN) * level
    masking = (1 - alpha(schedule, t)) * max_fraction
    limit = torch.ones_like(masking) if max_fraction >= 1 else 2 * masking
    is_masked = torch.where(is_first, u < masking, (u >= masking) & (u < limit))
    return is_masked, torch.where(
        is_first, nelbo_weight(schedule, t), complement_weight(schedule, t)
    )


def _rank_in_group(group: Tensor, value: Tensor) -> Tensor:
    """Rank of each value (in [0, 1)) among those of its group; groups are runs 0, 1, 2, ..."""
    order = torch.argsort(group + value)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(group.numel(), device=group.device)
    return rank - first_of_run(group)[group]
