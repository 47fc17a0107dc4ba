"""The forward pass of a public-format checkpoint equals an independent implementation's."""

import pytest
import torch

from tests.closeness import assert_close
from tests.reference.published import IDS, load_reference, tensor


@pytest.fixture(scope="module")
def checkpoint():
    return load_reference()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits(checkpoint, attention):
    checkpoint.model.set_attn_implementation(attention)
    ids = torch.arange(1, 9)[None]
    padded = torch.tensor([[1, 2, 3, 4, 5, 6, IDS["PAD"], IDS["PAD"]]])
    with torch.no_grad():
        plain = checkpoint.model(ids).logits
        masked = checkpoint.model(padded, (padded != IDS["PAD"]).long()).logits
    assert_close(plain, tensor("logits/bidir"))
    assert_close(masked, tensor("logits/padmask"))


def test_overrides_stand_in_for_the_contract(checkpoint):
    contract = checkpoint.contract
    assert (contract.mask_token_id, contract.objective) == (IDS["MASK"], "bd3lm")
    assert (contract.block_size, contract.block_grid) == (4, "prompt_end")
    assert checkpoint.tokenizer is None
