"""A training step on an accelerator: the CPU's loss and weights, and one wait for the device."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import softmax

from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec
from a2d_ray.models import flex_attention
from a2d_ray.training.batches import to_device
from a2d_ray.training.engine import forward_backward
from a2d_ray.training.metrics import StepTimes
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.ranks import Ranks
from tests.closeness import assert_close
from tests.rows import MIXED, packed_row
from tests.standin.device import DEVICE
from tests.tiny import tiny_a2d_model

EOS, MASK = 2, 300
KINDS = {
    "labels": (LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS), {}),
    "two views": (LayoutSpec(objective="bd3lm", block_size=4, views=2, eos_id=EOS), {}),
    "confident": (
        LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS),
        {"confidence_weight": 0.5},
    ),
    "drafts": (
        LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS, causal_clean=True, ar_targets=True),
        {"draft_target": "ar", "ar_weight": 0.5},
    ),
    "shifted": (
        LayoutSpec(
            objective="bd3lm", block_size=4, block_grid="absolute", eos_id=EOS, right_shift=True
        ),
        {"right_shift": True},
    ),
}


@pytest.fixture
def device(monkeypatch):
    """The stand-in device, with attention by the predicate, and a process group of one."""
    monkeypatch.setattr(flex_attention, "_kernel", lambda _: by_predicate)
    monkeypatch.setattr(dist, "all_reduce", lambda values: values)
    with DEVICE.present() as device:
        yield device


def by_predicate(query, key, value, *, block_mask, scale, **_):
    """Attention [1, H, N, d] under a mask's predicate, in plain torch on any device."""
    index = torch.arange(query.shape[2], device=query.device)
    allowed = block_mask.mask_mod(0, 0, index[:, None], index[None, :])
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    return softmax(scores.masked_fill(~allowed, -1e30), dim=-1) @ value


class PlainEngine:
    """What `forward_backward` asks of DeepSpeed, for one rank: plain gradient descent."""

    def __init__(self, module, num_micro):
        self.module, self.num_micro, self.done = module, num_micro, 0

    def __call__(self, *parts):
        return self.module(*parts)

    def backward(self, loss, *, scale_wrt_gas):
        loss.backward()

    def zero_optimization_stage(self):
        return 0

    def is_gradient_accumulation_boundary(self):
        return self.done == self.num_micro - 1

    def step(self):
        if self.is_gradient_accumulation_boundary():
            with torch.no_grad():
                for parameter in self.module.parameters():
                    parameter -= 0.1 * parameter.grad
        self.done += 1


def step_on(place, kind, num_micro):
    """Figures and weights after one step, and what the device counted."""
    spec, loss = KINDS[kind]
    model = tiny_a2d_model("qwen3", tie_word_embeddings=False).to(place).train()  # .to unties
    causal = spec.causal_clean
    module = DiffusionModule(
        model,
        LossSpec(mask_id=MASK, **loss),
        is_causal_clean=causal,
        compute_dtype=torch.float32,
    )
    micros = []
    for number in range(num_micro):
        layout = build_layout([packed_row(MIXED[::2], seed=number)], spec)
        epoch = torch.zeros(1, dtype=torch.int64)
        noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=epoch)
        micros.append((layout, noise, module.plan(layout, noise)))
    engine = PlainEngine(module, num_micro)
    device = torch.device(place)
    times = StepTimes(0.0, device)
    with DEVICE.counting() as counts:
        total, norm = forward_backward(
            engine, to_device(micros, device), scale=0.01, times=times, note=lambda _: None
        )
        found = Ranks(0, 1, device).sum_parts([total, norm, torch.ones(3)])
    weights = {name: p.detach().cpu() for name, p in module.named_parameters()}
    return found[:2], weights, counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_cpu_and_waits_once(kind, device):
    for num_micro in (1, 3):
        expected, weights, _ = step_on("cpu", kind, num_micro)
        found, ours, counts = step_on(device, kind, num_micro)
        assert_close(found, expected)
        assert_close(ours, weights)
        assert counts.waits.total() == counts.to_host.total() == 1, counts.waits


def test_launches_grow_with_micro_batches_only(device):
    one, three = (step_on(device, "labels", n)[2].launches.total() for n in (1, 3))
    assert one < three < 3 * one
