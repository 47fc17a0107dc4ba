"""model.trainable_layers: what is frozen costs nothing and does not move."""

import pytest
import torch

from a2d_ray.config import OptimSection
from a2d_ray.diffusion.layout import build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.optim import freeze_below, make_optimizer
from tests.closeness import assert_close
from tests.diffusion.test_objectives import CASES, MASK
from tests.rows import packed_row
from tests.tiny import tiny_a2d_model


def test_gradient_of_the_trained_layers_is_that_of_full_training():
    spec, documents = CASES[0]
    layout = build_layout([packed_row(documents)], spec)
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(1, dtype=torch.int64))
    models = [tiny_a2d_model("llama"), tiny_a2d_model("llama")]
    freeze_below(models[1], 1)
    for model in models:
        module = DiffusionModule(
            model, LossSpec(mask_id=MASK), is_causal_clean=False, compute_dtype=torch.float32
        )
        module(layout, noise).loss.backward()
    whole, part = (dict(model.named_parameters()) for model in models)
    trained = {name for name, p in part.items() if p.requires_grad}
    assert trained == {n for n in whole if n.startswith(("model.layers.1.", "model.norm."))}
    assert all(part[name].grad is None for name in part.keys() - trained)
    found, expected = ({name: of[name].grad for name in trained} for of in (part, whole))
    assert_close(found, expected)
    optimizer = make_optimizer(models[1], OptimSection())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match=r"model.trainable_layers=9 .* 2 layers"):
        freeze_below(tiny_a2d_model("llama"), 9)
