"""Noise schedules and block-diffusion masks equal an independent implementation's."""

import numpy as np
import pytest
import torch

from a2d_ray.diffusion.masks import may_attend
from a2d_ray.diffusion.schedules import alpha, alpha_derivative, nelbo_weight
from tests.reference.published import array_names, arrays, schedule_name, tensor

FUNCTIONS = {"alpha": alpha, "dalpha": alpha_derivative, "weight": nelbo_weight}


@pytest.mark.parametrize("case", array_names("alpha/"))
def test_schedules(case):
    _, scheduler, function = case.split("/")
    ours = FUNCTIONS[function](schedule_name(scheduler), tensor("sched_t"))
    np.testing.assert_allclose(ours, arrays()[case], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", array_names("bd3lm_mask/"))
def test_block_diffusion_mask(case):
    """The attention predicate over [xt; x0] is the paper's mask."""
    length, block_size = map(int, case.split("/")[1].split("_"))
    theirs = np.unpackbits(arrays()[case], axis=-1)[:, : 2 * length].astype(bool)
    position = torch.arange(length).repeat(2)
    stream = (torch.arange(2 * length) < length).long()
    pairs = [
        (x[:, None], x[None, :]) for x in (stream * 0, stream, position // block_size, position)
    ]
    assert np.array_equal(may_attend(*pairs).numpy(), theirs)
