"""The forward pass of a public-format checkpoint equals an independent implementation's."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from a2d_ray.models.checkpoint import load_checkpoint

REFERENCE_DIR = Path(os.environ.get("A2D_REFERENCE_DIR", Path(__file__).parent))
PAD = 60


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(
        REFERENCE_DIR / "tiny_a2d_qwen3",
        dtype=torch.float32,
        device="cpu",
        mask_token_id=62,
        objective="bd3lm",
        block_size=4,
        block_grid="prompt_end",
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits(checkpoint, attention):
    checkpoint.model.set_attn_implementation(attention)
    expected = np.load(REFERENCE_DIR / "reference.npz")
    ids = torch.arange(1, 9)[None]
    padded = torch.tensor([[1, 2, 3, 4, 5, 6, PAD, PAD]])
    with torch.no_grad():
        plain = checkpoint.model(ids).logits.numpy()
        masked = checkpoint.model(padded, (padded != PAD).long()).logits.numpy()
    np.testing.assert_allclose(plain, expected["logits/bidir"], atol=1e-5)
    np.testing.assert_allclose(masked, expected["logits/padmask"], atol=1e-5)


def test_overrides_stand_in_for_the_contract(checkpoint):
    contract = checkpoint.contract
    assert (contract.mask_token_id, contract.objective) == (62, "bd3lm")
    assert (contract.block_size, contract.block_grid) == (4, "prompt_end")
    assert checkpoint.tokenizer is None
