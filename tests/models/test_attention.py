"""Laws of bidirectional attention, for every architecture, in fp32.

Shapes: B batch, T queries, S keys.
"""

import pytest
import torch
from transformers import DynamicCache

from a2d_ray.models.architectures import ARCHITECTURES, bidirectional_mask
from tests.closeness import assert_close
from tests.tiny import tiny_a2d_model, tiny_ar_model

NAMES = [row.ar_model_type for row in ARCHITECTURES]
PAD = 2


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def model(name, request):
    model = tiny_a2d_model(name)
    model.set_attn_implementation(request.param)
    with torch.no_grad():
        yield model


def random_ids(*shape, seed=0):
    return torch.randint(3, 259, shape, generator=torch.Generator().manual_seed(seed))


def pad_to(ids_T, length, side):
    pads = torch.full((length - ids_T.numel(),), PAD)
    parts = [pads, ids_T] if side == "left" else [ids_T, pads]
    is_real = [torch.zeros_like(pads), torch.ones_like(ids_T)]
    return torch.cat(parts), torch.cat(is_real if side == "left" else is_real[::-1])


@pytest.mark.parametrize("mask", ["omitted", "ones", "4d"])
def test_a_mask_of_all_real_tokens_changes_nothing(model, mask):
    ids = random_ids(2, 7)
    masks = {
        "omitted": None,
        "ones": torch.ones_like(ids),
        "4d": torch.ones(2, 1, 7, 7, dtype=torch.bool),
    }
    per_head = torch.ones(2, 4, 7, 7, dtype=torch.bool)
    expected = model(input_ids=ids, attention_mask=per_head).logits
    assert_close(model(ids, masks[mask]).logits, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_invisible(model, side):
    ids = random_ids(5)
    padded, is_real = pad_to(ids, 9, side)
    alone = model(ids[None]).logits[0]
    logits = model(padded[None], is_real[None]).logits[0]
    assert_close(logits[is_real.bool()], alone)


def test_rows_of_a_mixed_batch_do_not_see_each_other(model):
    rows = [random_ids(9), random_ids(5, seed=1), random_ids(4, seed=2)]
    padded = [pad_to(rows[0], 9, "left"), pad_to(rows[1], 9, "left"), pad_to(rows[2], 9, "right")]
    ids, is_real = (torch.stack(part) for part in zip(*padded, strict=True))
    logits = model(ids, is_real).logits
    for row, row_logits, real in zip(rows, logits, is_real.bool(), strict=True):
        assert_close(row_logits[real], model(row[None]).logits[0])


def test_a_row_of_padding_alone_stays_finite(model):
    ids = random_ids(2, 6)
    is_real = torch.tensor([[1] * 6, [0] * 6])
    assert model(ids, is_real).logits.isfinite().all()


def test_future_affects_past_and_only_without_a_causal_mask(model):
    ids = random_ids(1, 8)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 250 + 3
    before = model(changed).logits[:, :-1] - model(ids).logits[:, :-1]
    assert (before.abs().amax(-1) > 1e-4).all()
    causal = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    assert torch.equal(model(changed, causal).logits[:, :-1], model(ids, causal).logits[:, :-1])


def test_cached_block_decoding_equals_one_forward_with_the_staircase(model):
    block_size, num_blocks = 4, 3
    length = block_size * num_blocks
    ids = random_ids(2, length)
    block = torch.arange(length) // block_size
    staircase = (block[None, :] <= block[:, None]).expand(2, 1, -1, -1)
    expected = model(ids, staircase).logits
    cache = DynamicCache()
    for start in range(0, length, block_size):
        out = model(
            ids[:, start : start + block_size],
            past_key_values=cache,
            use_cache=True,
            attention_mask=torch.ones(2, start + block_size),
        )
        assert_close(out.logits, expected[:, start : start + block_size])
    assert cache.get_seq_length() == length


def test_the_mask_may_be_omitted_with_a_cache(model):
    ids = random_ids(1, 8)
    expected = []
    for mask in (None, torch.ones(1, 1, 4, 8, dtype=torch.bool)):
        cache = model(ids[:, :4], use_cache=True).past_key_values
        logits = model(ids[:, 4:], mask, past_key_values=cache, use_cache=True).logits
        expected.append(logits)
    assert_close(*expected)


def test_noised_and_clean_stream_of_one_block_equal_the_plain_forward(model):
    """[xt; x0] with xt = x0: a single block sees itself only, so both halves are plain."""
    length = 6
    ids = random_ids(2, length)
    stream = torch.arange(2).repeat_interleave(length)
    own_stream = (stream[None, :] == stream[:, None]).expand(2, 1, -1, -1)
    positions = torch.arange(length).repeat(2)[None].expand(2, -1)
    logits = model(ids.repeat(1, 2), own_stream, position_ids=positions).logits
    plain = model(ids).logits
    assert_close(logits[:, :length], plain)
    assert_close(logits[:, length:], plain)


def test_backbone_and_head_alone_equal_the_model(model):
    ids = random_ids(1, 6)
    mask = (torch.arange(6)[None, :] // 3 <= torch.arange(6)[:, None] // 3)[None, None]
    hidden = model.model(
        input_ids=ids, attention_mask=mask, position_ids=torch.arange(6)[None]
    ).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(ids, mask).logits)
    assert torch.equal(
        model.lm_head(model.model(input_ids=ids).last_hidden_state), model(ids).logits
    )


def test_causal_mask_gives_the_ar_logits(model, name):
    ids = random_ids(2, 9)
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    expected = tiny_ar_model(name)(ids).logits
    assert_close(model(ids, causal).logits, expected)


def test_bfloat16_stays_close_to_float32(model):
    ids, is_real = random_ids(2, 8), torch.tensor([[0, 0] + [1] * 6, [1] * 8])
    expected = model(ids, is_real).logits
    actual = model.bfloat16()(ids, is_real).logits
    assert actual.dtype == torch.bfloat16
    assert_close(actual, expected, rounding=0.05)


def test_gradients_flow_from_the_past_to_the_future(name):
    model = tiny_a2d_model(name)
    embeds = model.get_input_embeddings()(random_ids(1, 5)).detach().requires_grad_()
    model(inputs_embeds=embeds).logits[:, 0].square().sum().backward()
    assert (embeds.grad.abs().sum(-1) > 0).all()


def test_a_2d_mask_must_cover_the_cache():
    with pytest.raises(ValueError, match=r"must be \[B, S\] = \[1, 8\]"):
        bidirectional_mask(
            torch.ones(1, 4),
            torch.zeros(1, 4),
            num_cached=4,
            attention="sdpa",
            dtype=torch.float32,
        )


def test_other_masks_and_other_attention_pass_through():
    options = {"inputs": torch.zeros(1, 4), "num_cached": 0, "dtype": torch.float32}
    marker = object()
    assert bidirectional_mask(marker, attention="sdpa", **options) is marker
    assert bidirectional_mask(None, attention="somebody's own", **options) is None
    dense = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert bidirectional_mask(dense, attention="somebody's own", **options) is dense
