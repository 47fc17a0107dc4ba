"""The naive layout, written from its description: [xt; x0], right padding, logits everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from a2d_ray.diffusion.layout import Layout, PackedRow
from a2d_ray.diffusion.noise import Noise


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """Documents as right-padded rows [R, L], with the noise of one view.

    Attributes:
        ids_RL: clean ids; is_masked_RL and weight_RL of their noise.
    """

    ids_RL: Tensor
    is_masked_RL: Tensor
    weight_RL: Tensor


def padded_batch(
    rows: Sequence[PackedRow], layout: Layout, noise: Noise, *, multiple: int, pad_id: int
) -> PaddedBatch:
    """The documents and draws of a layout (a document per row) as the naive layout holds them."""
    longest = max(row.ids_C.numel() for row in rows)
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), length), pad_id)
    for ids_L, row in zip(ids, rows, strict=True):
        ids_L[: row.ids_C.numel()] = row.ids_C
    is_first = layout.stream_RT == 1
    source = is_first.nonzero(as_tuple=True)
    place = source[0], layout.position_RT[source]
    ids[place] = layout.ids_RT[source]  # the fill of last blocks
    is_masked = torch.zeros_like(ids, dtype=torch.bool)
    weight = torch.zeros(ids.shape)
    is_masked[place] = noise.is_masked_RT[source]
    weight[place] = noise.weight_RT[source]
    return PaddedBatch(ids_RL=ids, is_masked_RL=is_masked, weight_RL=weight)


def naive_mask(length: int, block_size: int) -> Tensor:
    """Block diffusion's mask over [xt; x0], bool [1, 1, 2L, 2L]."""
    block = (torch.arange(length) // block_size).repeat(2)
    is_noisy = torch.arange(2 * length) < length
    q = block[:, None]
    k = block[None]
    noisy_q = is_noisy[:, None]
    noisy_k = is_noisy[None]
    same = noisy_q & noisy_k & (q == k)
    return (same | (noisy_q & ~noisy_k & (k < q)) | (~noisy_q & ~noisy_k & (k <= q)))[None, None]


def naive_loss(
    model: Any, batch: PaddedBatch, *, block_size: int, mask_id: int, masked_logits: bool = False
) -> Tensor:
    """Sum of weighted cross-entropies, with logits at all 2L positions of every row.

    Args:
        model: A2D model with head, attending through SDPA.
        batch: right-padded rows.
        block_size: tokens per block.
        mask_id: id of the mask token.
        masked_logits: the first shortcut (for the ablation): logits at masked targets only.
    """
    num_rows, length = batch.ids_RL.shape
    xt = torch.where(batch.is_masked_RL, mask_id, batch.ids_RL)
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([xt, batch.ids_RL], dim=1),
        "attention_mask": naive_mask(length, block_size).expand(num_rows, 1, -1, -1),
        "position_ids": torch.arange(length).repeat(2)[None].expand(num_rows, -1),
        "use_cache": False,
    }
    picked = batch.is_masked_RL
    if masked_logits:
        hidden = model.model(**inputs).last_hidden_state[:, :length]
        logits = model.lm_head(hidden[picked])
        labels = batch.ids_RL[picked]
        weight = batch.weight_RL[picked]
    else:
        logits = model(**inputs).logits[:, :length].flatten(0, 1)
        labels = batch.ids_RL.flatten()
        weight = batch.weight_RL.flatten()
    return (cross_entropy(logits.float(), labels, reduction="none") * weight).sum()


def bare_step(model: Any, batch: PaddedBatch, mask: Tensor) -> None:
    """The naive forward and backward passes and nothing else: the floor of an honest baseline."""
    num_rows, length = batch.ids_RL.shape
    logits = model(
        input_ids=batch.ids_RL.repeat(1, 2),
        attention_mask=mask.expand(num_rows, 1, -1, -1),
        position_ids=torch.arange(length).repeat(2)[None].expand(num_rows, -1),
        use_cache=False,
    ).logits[:, :length]
    cross_entropy(logits.float().flatten(0, 1), batch.ids_RL.flatten()).backward()
