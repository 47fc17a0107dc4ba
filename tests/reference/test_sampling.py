"""Schedules, unmask counts and greedy samples equal an independent implementation's."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from a2d_ray import SamplingParams, load
from a2d_ray.diffusion.decoding import commit_counts
from a2d_ray.diffusion.masks import may_attend
from a2d_ray.diffusion.schedules import alpha, alpha_derivative, nelbo_weight
from a2d_ray.generation.sampler import sample

REFERENCE_DIR = Path(os.environ.get("A2D_REFERENCE_DIR", Path(__file__).parent))
REFERENCE = json.loads((REFERENCE_DIR / "reference.json").read_text())
NUM_NEW = 16
MASKS = [
    key for key in np.load(REFERENCE_DIR / "reference.npz").files if key.startswith("bd3lm_mask/")
]


def is_plain(case):
    """Whether a sample uses only what the sampler has: no CFG, shift or suppressed tokens yet."""
    extras = ("cfg_scale", "right_shift", "suppress", "begin_suppress")
    return not any(case.get(key) for key in extras)


PLAIN = [case for case in REFERENCE["samples"] if is_plain(case)]


def test_unmask_counts():
    for case in REFERENCE["num_transfer"]:
        schedule = "linear" if case["sched"].startswith("Linear") else "cosine"
        assert commit_counts(case["masks"], case["steps"], schedule) == case["out"], case


@pytest.mark.parametrize("case", PLAIN, ids=lambda c: f"{c['kind']}-{c['block_size']}-{c['steps']}")
def test_greedy_samples(case):
    assert len(PLAIN) >= 2
    lm = load(
        REFERENCE_DIR / "tiny_a2d_qwen3",
        dtype="float32",
        device="cpu",
        mask_token_id=REFERENCE["ids"]["MASK"],
        objective=case["kind"],
        block_size=case["block_size"],
        block_grid="prompt_end",
    )

    def forward(ids_T, mask_TT):
        return lm.model(ids_T[None], attention_mask=mask_TT[None, None]).logits[0]

    params = SamplingParams(
        max_new_tokens=NUM_NEW, rule="steps", steps=case["steps"], ignore_eos=True
    )
    for prompt, row in zip(REFERENCE["prompts"], case["seq"], strict=True):
        got = sample(forward, [prompt], params, lm.contract, keep_mask_logit=True)
        start = len(row) - NUM_NEW if case["kind"] == "bd3lm" else len(prompt)
        assert got.canvas == row[start : start + NUM_NEW]
        assert len(got.history) + 1 == case["n_hist"]  # theirs begins with the empty canvas
        if case["kind"] == "bd3lm":  # the engine, which never emits the mask, agrees here
            (answer,) = lm.generate([prompt], params)
            assert answer.token_ids == got.canvas


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules(name):
    expected = np.load(REFERENCE_DIR / "reference.npz")
    t = torch.from_numpy(expected["sched_t"])
    functions = {"alpha": alpha, "dalpha": alpha_derivative, "weight": nelbo_weight}
    for key, function in functions.items():
        theirs = expected[f"alpha/{name.title()}AlphaScheduler/{key}"]
        np.testing.assert_allclose(function(name, t), theirs, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("case", MASKS)
def test_block_diffusion_mask(case):
    """The attention predicate over [xt; x0] is the paper's mask."""
    length, block_size = map(int, case.split("/")[1].split("_"))
    packed = np.load(REFERENCE_DIR / "reference.npz")[case]
    theirs = np.unpackbits(packed, axis=-1)[:, : 2 * length].astype(bool)
    position = torch.arange(length).repeat(2)
    stream = (torch.arange(2 * length) < length).long()
    pairs = [
        (x[:, None], x[None, :]) for x in (stream * 0, stream, position // block_size, position)
    ]
    assert np.array_equal(may_attend(*pairs).numpy(), theirs)
