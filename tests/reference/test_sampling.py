"""Unmask counts and greedy samples equal an independent implementation's."""

import pytest

from a2d_ray import SamplingParams, load
from a2d_ray.diffusion.decoding import commit_counts
from a2d_ray.generation.sampler import sample
from tests.reference.published import IDS, MODEL_PATH, REFERENCE

NUM_NEW = 16


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
        MODEL_PATH,
        dtype="float32",
        device="cpu",
        mask_token_id=IDS["MASK"],
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
