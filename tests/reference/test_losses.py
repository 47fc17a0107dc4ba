"""Losses and gradient norms of the preset `reference` equal the recipe's own (fp32)."""

import pytest
import torch

from a2d_ray.config import ObjectiveSection
from a2d_ray.diffusion.layout import LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.losses import normalise
from a2d_ray.diffusion.noise import Noise, mask_independently
from a2d_ray.diffusion.recipe import recipe_rows
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.objective import layout_spec, loss_spec, noise_spec
from tests.closeness import assert_close
from tests.reference.published import IDS, REFERENCE, load_reference, schedule_name, tensor

IGNORED = -100


def objective_of(case):
    """The configuration of a case; it is what a run of the preset says."""
    return ObjectiveSection(
        name=case["kind"],
        preset="reference",
        block_size=case["block_size"],
        block_grid="absolute" if case["kind"] == "bd3lm" else "segment",
        noise="bernoulli",
        noise_per="sequence",
        schedule=schedule_name(case["sched"]),
        weight="nelbo" if case["weight"] == "scheduler" else "uniform",
        norm=case["norm"],
        right_shift_logits=case["right_shift"],
        corruption_warmup=0.0,
    )


def rows_of(case):
    ids, labels = tensor("loss/input_ids"), tensor("loss/labels")
    if case.get("labels_col0_ignored"):
        labels[:, 0] = IGNORED
    zeros = torch.zeros_like(ids[0])
    return [
        PackedRow(
            ids_C=ids[r],
            doc_C=zeros,
            segment_C=zeros,
            is_target_C=labels[r] != IGNORED,
            doc_id_D=torch.tensor([r]),
            is_complete_D=torch.tensor([True]),
        )
        for r in range(len(ids))
    ]


def noise_of(layout, objective, num_added):
    """The case's random numbers where its tokens lie; `num_added`: BOS tokens before them."""
    u_t, u_mask = tensor("loss/u_t"), tensor("loss/u_mask")
    spec = noise_spec(objective)
    column = (layout.position_RT - num_added).clamp(0, u_mask.shape[1] - 1)
    row = torch.arange(len(u_t))[:, None].expand_as(column)
    is_masked, weight = mask_independently(
        u_mask[row, column], u_t[row], spec.schedule, torch.ones_like(layout.is_target_RT)
    )
    is_masked &= layout.is_target_RT
    return Noise(
        is_masked_RT=is_masked, weight_RT=(weight if spec.is_weighted else 1.0) * is_masked.float()
    )


def names_case(case):
    parts = (case["kind"], schedule_name(case["sched"]), case["weight"], case["norm"])
    return "-".join(parts) + ("-shift" if case["right_shift"] else "")


@pytest.mark.parametrize("case", REFERENCE["append_eos"])
def test_eos_fill(case):
    """What the recipe's collator appends; its labels are targets."""
    num_targets = sum(label != IGNORED for label in case["labels"])
    length = case["input_ids"].index(IDS["EOS"]) if IDS["EOS"] in case["input_ids"] else None
    ids = torch.tensor(case["input_ids"][:length])
    row = PackedRow(
        ids_C=ids,
        doc_C=torch.zeros_like(ids),
        segment_C=torch.zeros_like(ids),
        is_target_C=torch.tensor(case["labels"][:length]) != IGNORED,
        doc_id_D=torch.tensor([0]),
        is_complete_D=torch.tensor([True]),
    )
    spec = LayoutSpec(objective="bd3lm", block_size=4, block_grid="absolute", eos_id=IDS["EOS"])
    (filled,) = recipe_rows([row], spec, bos_id=None)
    assert filled.ids_C.tolist() == case["input_ids"]
    assert int(filled.is_target_C.sum()) == num_targets
    ours = build_layout([row], spec)  # the default's fill: the same targets
    assert int(ours.num_targets) == num_targets


@pytest.mark.parametrize("case", REFERENCE["losses"], ids=names_case)
def test_loss_and_gradient_norm(case):
    objective = objective_of(case)
    spec = layout_spec(objective, eos_id=IDS["EOS"])
    rows = rows_of(case)
    filled = recipe_rows(rows, spec, bos_id=IDS["BOS"])
    layout = build_layout(filled, spec)
    num_added = int(filled[0].ids_C[0] == IDS["BOS"])
    noise = normalise(noise_of(layout, objective, num_added), layout, objective.norm)
    model = load_reference(case["kind"], case["block_size"]).model
    loss = loss_spec(objective, mask_id=IDS["MASK"])
    module = DiffusionModule(model, loss, is_causal_clean=False, compute_dtype=torch.float32)
    total = module(layout, noise).loss
    total.backward()
    assert_close(total, case["loss"])
    norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
    assert_close(norm, case["grad_norm"])
