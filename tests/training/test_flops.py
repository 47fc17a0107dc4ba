"""The FLOP model against the attention predicate and against torch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from a2d_ray.diffusion.layout import PAD_DOC, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.models.architectures import ARCHITECTURES, Architecture
from a2d_ray.models.counting import matrix_parameters
from a2d_ray.models.miniature import make_miniature
from a2d_ray.planning.devices import PEAK_TFLOPS, peak_tflops
from a2d_ray.proving.tiny import tiny_config
from a2d_ray.training.flops import StepFlops, attended_pairs
from tests.diffusion.test_objectives import CASES
from tests.rows import packed_row
from tests.tiny import tiny_a2d_model


@pytest.mark.parametrize(("spec", "documents"), [c for c in CASES if not c[0].causal_clean])
def test_pairs_are_those_of_the_mask(spec, documents):
    layout = build_layout([packed_row(documents), packed_row(documents[:1])], spec)
    mask = dense_mask(layout)[:, 0]
    is_real = layout.doc_RT != PAD_DOC
    assert int(attended_pairs(layout)) == int((mask & is_real[:, :, None]).sum())


@pytest.mark.parametrize("name", [row.ar_model_type for row in ARCHITECTURES])
def test_flops_are_those_that_torch_counts(name):
    model = tiny_a2d_model(name, hidden_size=64, tie_word_embeddings=False)
    model.set_attn_implementation("eager")
    num_tokens = 24
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(num_tokens)[None]).logits.sum().backward()
    expected = StepFlops.of(model).step(num_tokens, num_tokens**2, num_tokens)
    # The first layer's input needs no gradient beyond the embedding: all matmuls run, though.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi3", "minicpm3", "mixtral", "qwen3_moe"])
def test_flops_of_other_families_are_those_that_torch_counts(name):
    """Latent attention has values of another width; of experts the chosen ones count."""
    config = tiny_config(name, hidden_size=64, intermediate_size=128, tie_word_embeddings=False)
    model = make_miniature(Architecture.of(name), config).a2d
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    num_tokens = 24
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(num_tokens)[None]).logits.sum().backward()
    expected = StepFlops.of(model).step(num_tokens, num_tokens**2, num_tokens)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_weights_in_4_bits_multiply_as_often():
    """They are packed, two to a byte, in one column."""
    model = tiny_a2d_model("llama")
    expected = matrix_parameters(model.base_model, model.config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert matrix_parameters(model.base_model, model.config) == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_the_names_that_cuda_reports(name, peak):
    assert peak_tflops(name) == peak


def test_no_peak_is_hidden_by_a_shorter_name():
    for part, peak in PEAK_TFLOPS.items():
        assert peak_tflops(f"NVIDIA {part}") == peak
