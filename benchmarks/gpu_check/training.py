"""A micro-batch of training, by phase: eager and compiled, padded and packed."""

from collections.abc import Iterator
from typing import Any

import torch

from a2d_ray.config import ModelSection
from a2d_ray.diffusion.layout import PAD_DOC, Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec
from a2d_ray.models.architectures import find_architecture
from a2d_ray.training.assembly import prepare_layers
from a2d_ray.training.flops import StepFlops, attended_pairs
from a2d_ray.training.module import DiffusionModule
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.place import Place
from benchmarks.models import config_values

PART = "training"
_BLOCK = 32
# Tokens per second of one H100 among 64, on paper: rows, layers eager and compiled.
_ESTIMATES = {
    ("padded", False): 28_000,
    ("padded", True): 105_000,
    ("packed", False): 39_000,
    ("packed", True): 102_000,
}


def measure_training(place: Place) -> Iterator[Figure]:
    """Yields the figures of this part."""
    shapes = ("packed",) if place.quick else ("padded", "packed")
    for shape in shapes:
        for is_compiled in (False, True):
            yield from _micro_batch(place, shape, is_compiled)


def make_a2d_model(place: Place, dtype: torch.dtype) -> Any:
    """The measured model, random weights."""
    row = find_architecture("qwen3")
    assert row is not None
    values = config_values(place.sizes, 4_096) | {"head_dim": place.sizes.head_dim}
    torch.manual_seed(0)
    with place.device:
        return row.model_class(row.config_class(**values, dtype=dtype)).to(dtype)


def _micro_batch(place: Place, shape: str, is_compiled: bool) -> Iterator[Figure]:
    place.forget_peak()
    torch.compiler.reset()
    model = make_a2d_model(place, torch.float32).train()
    backend_there = place.device.type == "cuda"  # elsewhere the check is checked, not the compiler
    section = ModelSection(path=".", compile=is_compiled and backend_there)
    prepare_layers(model, section, place.device)
    mask_id = place.sizes.vocab - 1
    module = DiffusionModule(
        model,
        LossSpec(mask_id=mask_id, is_compiled=section.compile is True),
        is_causal_clean=False,
        compute_dtype=place.dtype,
    )
    rows = _rows(place, shape)
    spec = LayoutSpec(objective="bd3lm", block_size=_BLOCK, eos_id=2, pad_id=2)
    layout = build_layout(rows, spec)
    noise = draw_noise(
        layout, NoiseSpec(), seed=0, epoch_R=torch.zeros(len(rows), dtype=torch.int64)
    )
    flops = _flops(model, layout, int(noise.is_masked_RT.sum()))
    plan = module.plan(layout, noise).to(place.device)
    layout, noise = layout.to(place.device), noise.to(place.device)

    def step() -> None:
        module(layout, noise, plan).loss.backward()
        model.zero_grad(set_to_none=True)

    name = f"{shape}, {'compiled' if is_compiled else 'eager'}"
    if is_compiled:
        yield place.figure(PART, f"{name}: first step", place.seconds(step), "s", 60)
    seconds = place.median_seconds(step, 2 if place.quick else 5)
    with torch.no_grad():
        forward_s = place.median_seconds(lambda: module(layout, noise, plan), 2)
    num_real = int((layout.doc_RT != PAD_DOC).sum())
    estimate = _ESTIMATES[shape, is_compiled]
    yield place.figure(PART, f"{name}: tokens", num_real / seconds, "1/s", estimate)
    yield place.figure(PART, f"{name}: forward", 1e3 * forward_s, "ms")
    yield place.figure(PART, f"{name}: forward and backward", 1e3 * seconds, "ms")
    share = num_real / len(plan.forward.tokens.doc_N)
    yield place.figure(PART, f"{name}: places that are tokens", share, "")
    yield place.figure(PART, f"{name}: peak memory", place.peak_gib(), "GiB")
    if place.peak_flops is not None:
        yield place.figure(PART, f"{name}: MFU", flops / seconds / place.peak_flops, "")


def _flops(model: Any, layout: Layout, num_masked: int) -> float:
    num_real = int((layout.doc_RT != PAD_DOC).sum())
    return StepFlops.of(model).step(num_real, int(attended_pairs(layout)), num_masked)


def _rows(place: Place, shape: str) -> list[PackedRow]:
    """16 documents of 60 to 512 tokens, padded; or 4 rows of them, packed."""
    longest, num_rows, each = (512, 16, 1) if shape == "padded" else (512, 4, 8)
    if place.is_tiny:
        longest, num_rows, each = 96, 2, each
    generator = torch.Generator().manual_seed(0)
    return [_row(place, longest, each, generator) for _ in range(num_rows)]


def _row(place: Place, longest: int, count: int, generator: torch.Generator) -> PackedRow:
    lengths = torch.randint(60, longest + 1, (count,), generator=generator)
    doc = torch.repeat_interleave(torch.arange(count), lengths)
    place_in_doc = torch.cat([torch.arange(int(length)) for length in lengths])
    is_answer = place_in_doc >= (lengths // 3)[doc]
    return PackedRow(
        ids_C=torch.randint(3, place.sizes.vocab - 1, (len(doc),), generator=generator),
        doc_C=doc,
        segment_C=is_answer.long(),
        is_target_C=is_answer,
        doc_id_D=torch.arange(count),
        is_complete_D=torch.ones(count, dtype=torch.bool),
    )
