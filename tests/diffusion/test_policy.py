"""Policy gradients: REINFORCE where nothing is clipped, limits where something is."""

import math
from dataclasses import replace

import pytest
import torch

from a2d_ray.diffusion.layout import LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.likelihood import DRAW_SEED, nelbo_sums
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec
from a2d_ray.diffusion.policy import (
    FIGURES,
    Credit,
    PolicySpec,
    answer_terms,
    group_advantages,
    mask_fill,
    policy_loss,
    without_fill,
)
from a2d_ray.models.layout_hidden import layout_hidden
from tests.closeness import assert_close
from tests.tiny import tiny_a2d_model, tiny_ar_model

MASK = 300
READING = LossSpec(mask_id=MASK)
EXACT = LayoutSpec(objective="bd3lm", block_size=4, causal_clean=True, ar_targets=True, eos_id=2)
BOUND = LayoutSpec(objective="bd3lm", block_size=4, eos_id=2)
PROMPTS = [[11, 12, 13], [21, 22, 23, 24, 25], [31]]
ANSWERS = [[41, 42, 43, 44, 45, 2], [51, 2], [61, 62, 63]]
ADVANTAGES = torch.tensor([0.75, -0.5, 0.25])


def rows(is_complete=(True, True, False)):
    found = []
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        segment_C = torch.tensor([0] * len(prompt) + [1] * len(answer))
        found.append(
            PackedRow(
                ids_C=torch.tensor(prompt + answer),
                doc_C=torch.zeros_like(segment_C),
                segment_C=segment_C,
                is_target_C=segment_C == 1,
                doc_id_D=torch.tensor([100 + number]),
                is_complete_D=torch.tensor([is_complete[number]]),
            )
        )
    return found


LENGTHS = torch.tensor([len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True)])


def laid_out(spec, noise=None, *, epoch=0, seed=0):
    epoch_R = torch.full((len(PROMPTS),), epoch)
    layout = without_fill(build_layout(rows(), spec), LENGTHS)
    drawn = draw_noise(layout, noise or NoiseSpec(kind="full"), seed=seed, epoch_R=epoch_R)
    return layout, mask_fill(layout, drawn, LENGTHS)


def backbone_of(model, is_causal=True):
    return lambda ids_RT, layout: layout_hidden(model, ids_RT, layout, is_causal)


def ar_logprobs(model, prompt, answer):
    """By the AR model itself: plain transformers, one text at a time."""
    logits_TV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logits_TV = logits_TV.index_fill(-1, torch.tensor([MASK]), -math.inf)
    return logits_TV.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


def old_of(layout, logprobs):
    old_RT = torch.zeros(layout.ids_RT.shape)
    for row, values in enumerate(logprobs):
        old_RT[row, layout.is_ar_target_RT[row]] = values.detach()
    return old_RT


def loss_and_gradient(model, layout, noise, credit, spec, reference=None):
    model.zero_grad()
    sums = policy_loss(
        layout, noise, credit, backbone_of(model), model.lm_head, spec, READING, reference
    )
    sums.loss.backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return sums, flat


def test_advantages_by_hand():
    rewards_GS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, math.nan, 3.0, 0.0], [2.0] * 4])
    plain = group_advantages(rewards_GS)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [-1, 0, 2, -1], [0] * 4]
    scaled = group_advantages(rewards_GS, is_scaled=True)
    assert torch.allclose(scaled[1], torch.tensor([-1, 0, 2, -1]) / math.sqrt(2))
    assert scaled[2].tolist() == [0] * 4
    assert group_advantages(torch.full((1, 3), math.nan)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_the_gradient_is_that_of_reinforce(ratio):
    """-sum over roll-outs of A grad log p(answer), by the AR model in plain transformers."""
    ar = tiny_ar_model()
    logprobs = [ar_logprobs(ar, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    reinforce = -sum(A * logp.sum() for A, logp in zip(ADVANTAGES, logprobs, strict=True))
    reinforce.backward()
    by_name = {name: p.grad for name, p in ar.named_parameters()}
    layout, noise = laid_out(EXACT)
    credit = Credit(advantage_R=ADVANTAGES, old_RT=old_of(layout, logprobs))
    model = tiny_a2d_model()
    spec = PolicySpec(ratio=ratio, draft_weight=0.0)
    sums, _ = loss_and_gradient(model, layout, noise, credit, spec)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, by_name[name])
    figures = dict(zip(FIGURES, sums.figures.tolist(), strict=True))
    assert figures["units"] == (11 if ratio == "token" else 3)
    assert figures["ratio"] == pytest.approx(figures["units"], rel=1e-4)
    assert figures["gap"] < 1e-3 and figures["clipped"] == 0 and figures["drafts"] == 11


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_ratios_beyond_the_limits_teach_only_what_leads_back(ratio):
    model = tiny_a2d_model()
    layout, noise = laid_out(EXACT)
    own = [ar_logprobs(tiny_ar_model(), p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    spec = PolicySpec(ratio=ratio, clip_low=0.2, clip_high=0.28, draft_weight=0.0)

    def gradient(advantage, ratio):
        old_RT = old_of(layout, [logp - math.log(ratio) for logp in own])
        credit = Credit(advantage_R=torch.full((3,), advantage), old_RT=old_RT)
        return loss_and_gradient(model, layout, noise, credit, spec)[1]

    plain = gradient(1.0, 1.0)
    assert gradient(1.0, 1.3).abs().max() == 0  # above 1.28
    assert gradient(-1.0, 0.79).abs().max() == 0  # below 0.8
    for advantage, drift in ((1.0, 1.27), (1.0, 0.5), (-1.0, 1.3), (-1.0, 0.81)):
        assert_close(gradient(advantage, drift), advantage * drift * plain)


def test_the_divergence_from_the_start_pulls_back():
    model = tiny_a2d_model()
    other = tiny_a2d_model(seed=1)
    layout, noise = laid_out(EXACT)
    own = [ar_logprobs(tiny_ar_model(), p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    credit = Credit(advantage_R=torch.zeros(3), old_RT=old_of(layout, own))
    spec = PolicySpec(kl_weight=0.5, draft_weight=0.0)
    itself = (backbone_of(tiny_a2d_model()), model.lm_head)
    _, at_start = loss_and_gradient(model, layout, noise, credit, spec, itself)
    assert at_start.abs().max() < 1e-6
    away = (backbone_of(other), other.lm_head)
    sums, _ = loss_and_gradient(model, layout, noise, credit, spec, away)
    theirs = [
        ar_logprobs(tiny_ar_model(seed=1), p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    away_N = torch.cat(theirs) - torch.cat(own)
    assert sums.loss.item() == pytest.approx(0.5 * (away_N.exp() - away_N - 1).sum().item(), 1e-4)


def test_drafts_learn_beside_the_policy_and_alone_where_nothing_was_earned():
    from a2d_ray.diffusion.objectives import diffusion_loss

    model = tiny_a2d_model()
    layout, noise = laid_out(EXACT)
    credit = Credit(advantage_R=torch.zeros(3), old_RT=torch.zeros(layout.ids_RT.shape))
    sums, _ = loss_and_gradient(model, layout, noise, credit, PolicySpec(draft_weight=0.5))
    head = model.lm_head
    drafts = diffusion_loss(layout, noise, backbone_of(model), head, READING)
    assert sums.loss.item() == pytest.approx(0.5 * drafts.loss.item(), rel=1e-5)


def test_the_bound_is_the_held_out_one_and_ends_with_the_answer():
    """Terms of each row add up to its share of `nelbo_sums` with the same draws."""
    model = tiny_a2d_model()
    backbone = backbone_of(model, is_causal=False)
    head = model.lm_head
    cut = rows(is_complete=(False,) * 3)
    spec = replace(BOUND, views=2)
    layout = build_layout(cut, spec)
    noise = draw_noise(layout, NoiseSpec(), seed=DRAW_SEED, epoch_R=torch.full((3,), 7))
    hidden = backbone(torch.where(noise.is_masked_RT, MASK, layout.ids_RT), layout)
    terms = answer_terms(layout, noise, hidden, head, MASK)
    for row in range(3):
        one = nelbo_sums(
            cut[row : row + 1], BOUND, backbone, head, mask_id=MASK, draw=7, device="cpu"
        )
        found = terms.logp_N[terms.row_N == row].sum().item()
        assert found == pytest.approx(-one.nats.item(), rel=1e-4)
    layout, noise = laid_out(spec, NoiseSpec())
    is_fill = layout.position_RT >= LENGTHS[:, None]
    is_fill &= layout.stream_RT > 0
    assert is_fill.any() and noise.is_masked_RT[is_fill].all()
    assert (noise.weight_RT[is_fill] == 0).all() and not layout.is_target_RT[is_fill].any()
    assert layout.num_targets == 2 * sum(map(len, ANSWERS))


def test_with_the_bound_too_the_gradient_is_that_of_reinforce():
    model = tiny_a2d_model()
    layout, noise = laid_out(replace(BOUND, views=2), NoiseSpec())
    credit = Credit(advantage_R=ADVANTAGES, old_RT=torch.zeros(layout.ids_RT.shape))
    spec = PolicySpec(ratio="sequence")
    backbone = backbone_of(model, is_causal=False)
    head = model.lm_head
    policy_loss(layout, noise, credit, backbone, head, spec, READING).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    hidden = backbone(torch.where(noise.is_masked_RT, MASK, layout.ids_RT), layout)
    terms = answer_terms(layout, noise, hidden, head, MASK)
    (-2 * (ADVANTAGES[terms.row_N] * terms.logp_N).sum()).backward()  # targets count per view
    for name, parameter in model.named_parameters():
        assert_close(found[name], parameter.grad)
