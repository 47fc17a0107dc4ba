"""Micro-batches of a step: what a configuration asks for, whatever they are cut into."""

import pytest
import torch

from a2d_ray.config import (
    BatchSection,
    DataSection,
    ModelSection,
    ObjectiveSection,
    RunSection,
    TrainConfig,
)
from a2d_ray.training.batches import COUNTS, StepBuilder, rows_per_micro
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.objective import loss_spec
from tests.closeness import assert_close
from tests.diffusion.test_objectives import MASK, gradients
from tests.rows import LAST_ONLY, MIXED, packed_row, split_documents
from tests.test_config import RECIPE, grid_of
from tests.tiny import tiny_a2d_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EPOCHS = torch.tensor([0, 0, 1])


def config_of(*, is_packed, **objective):
    return TrainConfig(
        run=RunSection(name="x"),
        model=ModelSection(path="x"),
        data=DataSection(spec="x.jsonl", targets="last", packing=is_packed),
        objective=ObjectiveSection(**{"name": "bd3lm", "block_size": 4, **objective}),
        batch=BatchSection(rows=3),
    )


def step_gradient(config, rows, rows_per_micro):
    """Gradient of the loss of one step, and its counts."""
    builder = StepBuilder.of(config, TOKENIZER, rows_per_epoch=10, rows_per_micro=rows_per_micro)
    micros = builder.micros(rows, EPOCHS)
    counts = dict(zip(COUNTS, builder.counts(micros).tolist(), strict=True))
    module = DiffusionModule(
        tiny_a2d_model("llama"),
        loss_spec(config.objective, mask_id=MASK),
        is_causal_clean=builder.spec.causal_clean,
        compute_dtype=torch.float32,
    )
    losses = [module(layout, noise).loss / counts["denominator"] for layout, noise in micros]
    return gradients(module, *losses), counts


@pytest.mark.parametrize(
    "objective",
    [
        {"views": 2},
        {"block_size": [2, 4, 8]},
        {"clean_attention": "causal", "ar_loss_weight": 0.5},
        {"clean_attention": "causal", "draft_target": "ar", "noise": "full", "full_share": 0.5},
        {"name": "mdlm"},
    ],
    ids=["views", "sizes", "ar", "drafts", "mdlm"],
)
def test_a_step_has_one_gradient_however_it_is_cut(objective):
    config = config_of(is_packed=True, **objective)
    documents = LAST_ONLY if objective.get("name") == "mdlm" else MIXED
    rows = [packed_row(documents, seed=s) for s in range(3)]
    whole, counts = step_gradient(config, rows, 3)
    assert counts["denominator"] == counts["targets"] > 0
    assert all(gradient.any() for gradient in whole.values())
    for num_rows in (1, 2):
        cut, same = step_gradient(config, rows, num_rows)
        assert same == counts
        assert_close(cut, whole)


@pytest.mark.parametrize("name", ["mdlm", "bd3lm"])
@pytest.mark.parametrize("shift", [False, True])
def test_the_reference_preset_is_the_mean_over_its_micro_batches(name, shift):
    config = config_of(
        is_packed=False, **RECIPE, **grid_of(name), name=name, right_shift_logits=shift
    )
    rows = split_documents(packed_row(LAST_ONLY))
    builder = StepBuilder.of(config, TOKENIZER, rows_per_epoch=10, rows_per_micro=3)
    ((layout, _),) = builder.micros(rows, EPOCHS)
    fill = {"mdlm": [5, 5, 0], "bd3lm": [1, 1, 0]}[name]  # to the longest; to a block of four
    assert layout.is_target_RT.sum(1).tolist() == [
        n + f for n, f in zip((6, 4, 8), fill, strict=True)
    ]
    mean, counts = step_gradient(config, rows, 1)
    assert counts["denominator"] == 3
    alone = [
        step_gradient_of_one(config, row, epoch) for row, epoch in zip(rows, EPOCHS, strict=True)
    ]
    if name == "bd3lm":  # mdlm's fill depends on the micro-batch
        assert_close(mean, {name: sum(one[name] for one in alone) / 3 for name in mean})
    assert all(gradient.isfinite().all() and gradient.any() for gradient in mean.values())


def step_gradient_of_one(config, row, epoch):
    builder = StepBuilder.of(config, TOKENIZER, rows_per_epoch=10, rows_per_micro=1)
    ((layout, noise),) = builder.micros([row], epoch[None])
    module = DiffusionModule(
        tiny_a2d_model("llama"),
        loss_spec(config.objective, mask_id=MASK),
        is_causal_clean=False,
        compute_dtype=torch.float32,
    )
    return gradients(module, module(layout, noise).loss)


@pytest.mark.parametrize(
    ("tokens", "rows", "given", "device", "wanted"),
    [
        (128, 6, None, "cpu", 6),
        (2_048, 8, None, "cpu", 1),
        (600, 8, None, "cpu", 2),  # three do not divide eight
        (4_096, 8, None, "cpu", 1),
        (2_048, 8, None, "cuda", 8),
        (2_048, 8, 4, "cpu", 4),
    ],
)
def test_a_cpu_takes_few_rows_at_a_time(make_config, tokens, rows, given, device, wanted):
    data = {"tokens_per_row": tokens, "max_length": 32}
    config = make_config(data=data, batch={"rows": rows, "rows_per_device": given})
    assert rows_per_micro(config, rows, device) == wanted
    zero = {"zero_optimization": {"stage": 1, "overlap_comm": True}}
    if given is None:  # DeepSpeed loses gradients there
        config = make_config(data=data, batch={"rows": rows}, deepspeed=zero)
        assert rows_per_micro(config, rows, device) == rows
