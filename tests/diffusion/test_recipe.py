"""The public recipe's rows and norms, against the dense computation written out."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.losses import denominator, normalise
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, diffusion_loss
from a2d_ray.diffusion.recipe import recipe_rows
from tests.closeness import assert_close
from tests.diffusion.test_objectives import MASK, backbone_of, gradients
from tests.rows import MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model

EOS, BOS = 2, 1
NOISE = NoiseSpec(kind="bernoulli", per="sequence", schedule="cosine")
DOCUMENTS = [
    (7, [(5, False), (6, True)], True),
    (9, [(9, True)], True),
    (10, [(8, False), (8, True)], True),
]


def dense_loss(model, rows, noise_of, spec, norm):
    """[xt; x0] (or xt alone) right-padded, logits everywhere, then a mask: as the recipe does it.

    `noise_of(row, position)` is (masked, weight).
    """
    length = max(row.ids_C.numel() for row in rows)
    ids = torch.full((len(rows), length), EOS)
    target, masked = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids).bool()
    weight = torch.zeros(ids.shape)
    for r, row in enumerate(rows):
        n = row.ids_C.numel()
        ids[r, :n], target[r, :n] = row.ids_C, row.is_target_C
        for c in range(n):
            masked[r, c], weight[r, c] = noise_of(r, c)
    xt, position = torch.where(masked, MASK, ids), torch.arange(length)
    if spec.objective == "mdlm":
        mask = torch.ones(length, length, dtype=torch.bool)
        stacked, positions = xt, position
    else:
        block = (position // spec.block_size).repeat(2)
        noisy = torch.arange(2 * length) < length
        q, k, nq, nk = block[:, None], block[None], noisy[:, None], noisy[None]
        mask = (nq & nk & (q == k)) | (nq & ~nk & (k < q)) | (~nq & ~nk & (k <= q))
        stacked, positions = torch.cat([xt, ids], 1), position.repeat(2)
    logits = model(
        stacked,
        attention_mask=mask[None, None].expand(len(rows), 1, -1, -1),
        position_ids=positions[None].expand(len(rows), -1),
        use_cache=False,
    ).logits[:, :length]
    if spec.right_shift:
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    nll = cross_entropy(logits.transpose(1, 2), ids, reduction="none") * weight * masked
    n = target.sum(1, keepdim=True)
    divisor = {"token": n.sum(), "sequence": n * len(rows), "batch": len(rows)}[norm]
    return (nll / divisor).sum()


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
@pytest.mark.parametrize("right_shift", [False, True])
@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_preset_equals_the_dense_recipe(objective, right_shift, norm):
    model = tiny_a2d_model("qwen3")
    spec = LayoutSpec(
        objective=objective,
        block_size=4,
        block_grid="absolute",
        eos_id=EOS,
        right_shift=right_shift,
    )
    rows = recipe_rows(split_documents(packed_row(DOCUMENTS)), spec, bos_id=BOS)
    is_shifted = [bool(row.ids_C[0] == BOS) for row in rows]
    assert is_shifted == [right_shift] * 3  # the second begins with a target
    lengths = [row.ids_C.numel() - right_shift for row in rows]
    assert lengths == ([16, 16, 16] if objective == "mdlm" else [12, 12, 16])
    layout = build_layout(rows, spec)
    noise = draw_noise(layout, NOISE, seed=5, epoch_R=torch.zeros(3, dtype=torch.int64))
    drawn = {
        (r, p): (noise.is_masked_RT[r, c], noise.weight_RT[r, c])
        for r, c in (layout.stream_RT == 1).nonzero().tolist()
        for p in [int(layout.position_RT[r, c])]
    }
    expected = dense_loss(model, rows, lambda r, c: drawn.get((r, c), (False, 0.0)), spec, norm)
    ours = diffusion_loss(
        layout,
        normalise(noise, layout, norm),
        backbone_of(model),
        model.lm_head,
        LossSpec(mask_id=MASK, keeps_mask_logit=True, right_shift=right_shift),
    )
    assert_close(ours.loss, expected)
    assert_close(gradients(model, ours.loss), gradients(model, expected))


def test_no_bos_where_no_row_begins_with_a_target():
    spec = LayoutSpec(objective="mdlm", eos_id=EOS, right_shift=True)
    rows = split_documents(packed_row([DOCUMENTS[0], DOCUMENTS[2]]))
    assert [row.ids_C.numel() for row in recipe_rows(rows, spec, bos_id=None)] == [16, 16]
    with pytest.raises(ValueError, match="BOS"):
        recipe_rows(split_documents(packed_row(DOCUMENTS)), spec, bos_id=None)
    with pytest.raises(ValueError, match="one document per row"):
        recipe_rows([packed_row(DOCUMENTS)], spec, bos_id=None)


def test_norms_by_hand():
    spec = LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS)
    layout = build_layout(split_documents(packed_row(MIXED)), spec)
    noise = draw_noise(layout, NoiseSpec(), seed=0, epoch_R=torch.zeros(4, dtype=torch.int64))
    sums, n = noise.weight_RT.sum(1), layout.is_target_RT.sum(1)
    for norm, total in {
        "step": sums.sum(),
        "token": sums.sum() / n.sum(),
        "sequence": (sums / n).mean(),
        "batch": sums.sum() / 4,
    }.items():
        assert_close(normalise(noise, layout, norm).weight_RT.sum(), total)
    assert int(denominator(layout, "step")) == int(n.sum())
    assert int(denominator(layout, "batch")) == 1


def test_right_shift_needs_a_grid_without_fill_inside():
    with pytest.raises(ValueError, match="right_shift needs"):
        replace(LayoutSpec(objective="bd3lm"), right_shift=True)
