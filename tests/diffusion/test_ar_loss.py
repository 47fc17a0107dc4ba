"""The AR loss on the clean stream is the plain next-token loss of the document."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.objectives import LossSpec
from tests.closeness import assert_close
from tests.diffusion.test_objectives import MASK, gradients, loss_of
from tests.rows import MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model

WEIGHT = 0.3
CAUSAL = LayoutSpec(objective="bd3lm", block_size=4, eos_id=2, causal_clean=True)


def with_ar(views):
    return LayoutSpec(
        objective="bd3lm", block_size=4, eos_id=2, causal_clean=True, ar_targets=True, views=views
    )


def next_token_loss(model, row):
    """Cross-entropy of the targets of one document under a causal mask, all logits computed."""
    mask = torch.ones(len(row.ids_C), len(row.ids_C)).tril().bool()
    logits = model(row.ids_C[None], attention_mask=mask[None, None], use_cache=False).logits[0]
    logits[:, MASK] = -torch.inf
    losses = cross_entropy(logits[:-1], row.ids_C[1:], reduction="none")
    return losses[row.is_target_C[1:]].sum()


@pytest.mark.parametrize("views", [1, 2])
def test_diffusion_loss_plus_next_token_loss(views):
    model, row = tiny_a2d_model("qwen3"), packed_row(MIXED)
    spec = with_ar(views)
    ours = loss_of(model, [row], spec, loss=LossSpec(mask_id=MASK, ar_weight=WEIGHT))
    plain_spec = LayoutSpec(
        objective="bd3lm", block_size=4, eos_id=2, causal_clean=True, views=views
    )
    plain = loss_of(model, [row], plain_spec)
    ar = sum(next_token_loss(model, document) for document in split_documents(row))
    assert ours.num_targets == plain.num_targets
    assert_close(ours.ar_nats, ar)
    expected = plain.loss + WEIGHT * views * ar
    assert_close(ours.loss, expected)
    assert_close(gradients(model, ours.loss), gradients(model, expected))


def test_the_clean_stream_ends_with_the_last_target():
    row = packed_row([(1, [(5, False), (10, True)], True)])
    kept = build_layout([row], with_ar(1))
    dropped = build_layout([row], CAUSAL)
    assert int((kept.stream_RT == 0).sum()) == 15 and int((dropped.stream_RT == 0).sum()) == 13
    assert int(kept.is_ar_target_RT.sum()) == 10 and not dropped.is_ar_target_RT.any()


def test_a_first_token_has_no_predecessor():
    layout = build_layout([packed_row([(1, [(6, True)], False)])], with_ar(1))
    assert layout.position_RT[layout.is_ar_target_RT].tolist() == [1, 2, 3, 4, 5]


def test_ar_targets_need_a_causal_clean_stream():
    with pytest.raises(ValueError, match="causal_clean"):
        LayoutSpec(objective="bd3lm", ar_targets=True)
