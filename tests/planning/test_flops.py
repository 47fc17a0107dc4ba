"""The FLOP model counts what the layout lays out and what the mask allows."""

from itertools import product

import pytest
import torch

from a2d_ray.config import ModelSection, ObjectiveSection
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.planning.flops import (
    LayoutCost,
    forward_flops,
    layout_cost,
    padded_cost,
    train_flops,
)
from a2d_ray.planning.sizes import find_sizes
from tests.rows import packed_row
from tests.tiny import tiny_a2d_model


def trained(**options):
    return ModelSection(path="x", **options)


CASES = [
    *product(["bd3lm"], [1, 3, 4], [1, 2], ["block", "causal"], [(9, 13), (0, 8), (8, 4), (5, 1)]),
    *product(["mdlm"], [4], [1, 2], ["block"], [(9, 13), (0, 8)]),
]


@pytest.mark.parametrize(("name", "block_size", "views", "clean_attention", "lengths"), CASES)
def test_counts_are_those_of_the_layout(name, block_size, views, clean_attention, lengths):
    objective = ObjectiveSection(
        name=name, block_size=block_size, views=views, clean_attention=clean_attention
    )
    is_causal = clean_attention == "causal"
    spec = LayoutSpec(objective=name, block_size=block_size, views=views, causal_clean=is_causal)
    segments = [(n, is_answer) for n, is_answer in zip(lengths, (False, True), strict=True) if n]
    layout = build_layout([packed_row([(7, segments, True)])], spec)
    cost = layout_cost(*lengths, objective)
    assert cost.tokens == int((layout.doc_RT >= 0).sum())
    assert cost.pairs == int(dense_mask(layout, is_causal_clean=is_causal).sum())
    assert cost.targets == int(layout.num_targets)


@pytest.mark.parametrize("drafts", [{"ar_loss_weight": 1.0}, {"draft_target": "ar"}])
@pytest.mark.parametrize(("prompt", "answer"), [(9, 13), (8, 4), (5, 1)])
def test_what_reads_the_ar_mode_lays_out_the_whole_clean_stream(prompt, answer, drafts):
    objective = ObjectiveSection(
        name="bd3lm", block_size=4, clean_attention="causal", noise="full", **drafts
    )
    spec = LayoutSpec(objective="bd3lm", block_size=4, causal_clean=True, ar_targets=True)
    layout = build_layout([packed_row([(7, [(prompt, False), (answer, True)], True)])], spec)
    cost = layout_cost(prompt, answer, objective)
    assert cost.tokens == int((layout.doc_RT >= 0).sum())
    assert cost.pairs == int(dense_mask(layout, is_causal_clean=True).sum())
    assert cost.logits == int(layout.num_targets) + int(layout.is_ar_target_RT.sum())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_logits_of_full_noise_are_its_mean(share):
    options = {"name": "bd3lm", "block_size": 8}
    objective = ObjectiveSection(**options, noise="full", full_share=share)
    exact = layout_cost(3, 16, ObjectiveSection(**options)).logits
    expected = share * 16 + (1 - share) * exact
    assert layout_cost(3, 16, objective).logits == pytest.approx(expected)


@pytest.mark.parametrize(("name", "views"), list(product(["bd3lm", "mdlm"], [1, 2])))
def test_logits_are_the_mean_of_the_noise(name, views):
    objective = ObjectiveSection(name=name, block_size=8, views=views)
    spec = LayoutSpec(objective=name, block_size=8, views=views)
    row = packed_row([(d, [(3, False), (16, True)], True) for d in range(200)])
    layout = build_layout([row], spec)
    epoch_R = torch.zeros(1, dtype=torch.int64)
    masked = [
        int(draw_noise(layout, NoiseSpec(), seed=seed, epoch_R=epoch_R).is_masked_RT.sum())
        for seed in range(20)
    ]
    mean = sum(masked) / len(masked) / 200
    assert mean == pytest.approx(
        layout_cost(3, 16, objective).logits, rel=0.026
    )  # 3 sigma of 4,000 draws


def test_forward_flops_are_those_of_the_matrices():
    """Against torch's own counter, on a real model; attention apart."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_a2d_model("qwen3", num_hidden_layers=3)
    from a2d_ray.planning.sizes import sizes_of

    sizes = sizes_of(model.config.to_dict())
    ids = torch.zeros(2, 50, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids)
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(n for op, n in counted.items() if "attention" not in str(op))
    cost = LayoutCost(tokens=100, pairs=0, logits=100, targets=100)
    assert matrices == forward_flops(cost, sizes)


AR_512 = LayoutCost(tokens=512, pairs=512**2 / 2, logits=512, targets=256)


def test_design_figures_of_qwen3_at_512():
    """Forward cost against AR, half response: naive 2.28x, ours 1.13x, 0.79x per view of two."""
    sizes = find_sizes("Qwen/Qwen3-0.6B")
    ar = forward_flops(AR_512, sizes)

    def ratio(cost):
        return forward_flops(cost, sizes) / ar

    bd3lm = [ObjectiveSection(name="bd3lm", block_size=32, views=views) for views in (1, 2)]
    one, two = (layout_cost(256, 256, objective) for objective in bd3lm)
    naive = padded_cost(512, 256, bd3lm[0])
    assert ratio(naive) == pytest.approx(2.28, rel=0.005)
    assert ratio(one) == pytest.approx(1.13, rel=0.03)
    assert ratio(two) / 2 == pytest.approx(0.79, rel=0.03)


@pytest.mark.parametrize(("length", "floors"), [(1024, (0.47, 0.33)), (512, (0.52, 0.36))])
def test_design_floors_of_the_training_benchmark(length, floors):
    """SmolLM2-135M, half response, block 32: cost per target and view against the naive layout."""
    sizes = find_sizes("package:smollm2")
    half = length // 2
    for views, floor in zip((1, 2), floors, strict=True):
        objective = ObjectiveSection(name="bd3lm", block_size=32, views=views)
        naive = padded_cost(length, half, objective)
        ours = layout_cost(half, half, objective)
        ratio = train_flops(ours, sizes) / views / train_flops(naive, sizes)
        assert ratio == pytest.approx(floor, abs=0.012)


def test_a_backward_pass_costs_two_forwards_and_checkpointing_one_more():
    sizes = find_sizes("package:smollm2")
    cost = layout_cost(256, 256, ObjectiveSection(name="bd3lm", block_size=32))
    forward = forward_flops(cost, sizes)
    whole = train_flops(cost, sizes)
    assert whole == pytest.approx(3 * forward)
    checkpointed = train_flops(cost, sizes, trained(gradient_checkpointing=True))
    head = 2 * cost.logits * sizes.hidden * sizes.vocab
    assert checkpointed - whole == pytest.approx(forward - head)
    half = train_flops(cost, sizes, trained(trainable_layers=15))
    assert half == pytest.approx(forward + (forward - head) + head)
    adapters = train_flops(cost, sizes, trained(lora={"r": 8}))
    assert adapters == pytest.approx(2 * forward)
