"""Best fit: nothing lost, nothing split, hardly any room left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.data.packing.best_fit import WINDOW_DOCUMENTS, pack, utilisation


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_is_in_one_pack_that_holds_it(costs):
    packs = pack(costs, 50)
    assert sorted(i for indices in packs for i in indices) == list(range(len(costs)))
    assert all(0 < sum(costs[i] for i in indices) <= 50 for indices in packs)
    assert packs == pack(costs, 50)


@given(st.lists(st.integers(1, 50), max_size=200))
def test_no_two_packs_would_fit_into_one(costs):
    used = sorted(sum(costs[i] for i in indices) for indices in pack(costs, 50))
    assert len(used) < 2 or used[0] + used[1] > 50


def test_a_tulu_like_mix_fills_98_percent():
    lengths = np.random.default_rng(0).lognormal(np.log(300), 1.0, WINDOW_DOCUMENTS)
    costs = np.clip(lengths, 8, 1024).astype(int).tolist()
    packs = pack(costs, 4096)
    assert utilisation(costs, 4096, len(packs)) >= 0.98


def test_a_document_larger_than_a_pack_is_an_error():
    with pytest.raises(ValueError, match="document 1 takes 51 tokens, a pack holds 50"):
        pack([1, 51], 50)
