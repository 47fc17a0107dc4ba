"""Unmask counts, greedy samples, infill, mask and positions equal another implementation's."""

import math

import numpy as np
import pytest
import torch

from a2d_ray import LanguageModel, SamplingParams
from a2d_ray.diffusion.decoding import commit_counts
from a2d_ray.generation.decoding.canvas import make_canvas
from a2d_ray.generation.reference import sample
from a2d_ray.models.contract import Contract
from tests.reference.published import IDS, REFERENCE, arrays, load_reference, schedule_name

NUM_NEW = 16


def name(case):
    options = [f"{k}={v}" for k, v in case.items() if v and k not in ("seq", "n_hist")]
    return "-".join(options)


@pytest.mark.parametrize("case", REFERENCE["num_transfer"], ids=name)
def test_unmask_counts(case):
    ours = commit_counts(case["masks"], case["steps"], schedule_name(case["sched"]))
    assert ours == case["out"]


def reference_model(objective, block_size, *, right_shift=False):
    loaded = load_reference(objective, block_size)
    contract = loaded.contract.model_copy(update={"right_shift_logits": right_shift})
    return LanguageModel(loaded.model, None, contract)


def forward_of(lm):
    def forward(ids_T, mask_TT):
        return lm.model(ids_T[None], attention_mask=mask_TT[None, None]).logits[0]

    return forward


@pytest.mark.parametrize("case", REFERENCE["samples"], ids=name)
def test_greedy_samples(case):
    lm = reference_model(case["kind"], case["block_size"], right_shift=case["right_shift"])
    params = SamplingParams(
        max_new_tokens=NUM_NEW,
        rule="steps",
        steps=case["steps"],
        cfg_scale=case["cfg_scale"],
        suppress_tokens=case.get("suppress") or (),
        begin_suppress_tokens=case.get("begin_suppress") or (),
        ignore_eos=True,
    )
    for prompt, row in zip(REFERENCE["prompts"], case["seq"], strict=True):
        got = sample(forward_of(lm), [prompt], params, lm.contract, is_reference=True)
        start = len(row) - NUM_NEW if case["kind"] == "bd3lm" else len(prompt)
        assert got.canvas == row[start : start + NUM_NEW]
        assert got.history[-1] == got.canvas
        if "n_hist" in case:
            assert len(got.history) + 1 == case["n_hist"]  # theirs begins with the empty canvas


def test_infill():
    case = REFERENCE["infill"]
    rows, block_size = case["inputs"], case["block_size"]
    lm = reference_model(case.get("kind", "mdlm"), block_size)
    longest = max(map(len, rows))
    per_window = math.ceil(case["steps"] / math.ceil(longest / block_size))
    for row, theirs in zip(rows, case["seq"], strict=True):
        params = SamplingParams(
            rule="steps", steps=per_window * math.ceil(len(row) / block_size), ignore_eos=True
        )
        holed = [None if token == IDS["MASK"] else token for token in row]
        got = sample(forward_of(lm), [holed], params, lm.contract, is_reference=True)
        assert got.token_ids == theirs[: len(row)]  # theirs are filled up with EOS


def test_mask_and_positions_of_a_left_padded_prompt():
    """Theirs pads to a block multiple; ours has no padding and the same sight and positions."""
    block_size = 4
    contract = Contract(
        objective="bd3lm", mask_token_id=IDS["MASK"], block_size=block_size, block_grid="prompt_end"
    )
    prep = {key: arrays()[f"prep/{key}"] for key in ("x", "mask", "pos")}
    for x, mask, position in zip(prep["x"], prep["mask"][:, 0], prep["pos"], strict=True):
        is_token = x != IDS["PAD"]
        prompt = x[is_token].tolist()
        block = torch.tensor(make_canvas([prompt], SamplingParams(), contract).blocks)
        sees = (block[None, :] <= block[:, None])[: len(prompt), : len(prompt)]
        assert np.array_equal(sees.numpy(), mask[is_token][:, is_token])
        assert not mask[:, ~is_token].any()
        assert position[is_token].tolist() == list(range(len(prompt)))
