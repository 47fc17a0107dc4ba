"""Bytes of a step against what real layers move, and plans of steps against themselves."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from a2d_ray.diffusion.coverage import TILE
from a2d_ray.diffusion.losses import label_loss
from a2d_ray.planning.devices import PEAK_TFLOPS
from a2d_ray.planning.sizes import sizes_of
from a2d_ray.planning.speed import CAST, EAGER_LOGITS, GRADIENT, TAIL_TOKENS, element_wise_bytes
from tests.planning.test_estimate import plan
from tests.tiny import tiny_a2d_model

PRODUCTS = {"mm", "bmm", "addmm"}
UNMOVED = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided"}
PICKED = {"gather", "scatter_add_", "fill_"}  # they touch a number per row


class Moved(TorchDispatchMode):
    """Bytes that operations read and write, but for products, views and picked numbers."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = op(*args, **(kwargs or {}))
        read, written = (
            [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
            for values in ((args, kwargs), found)
        )
        places = {x.untyped_storage().data_ptr() for x in read}
        is_in_place = any(a is b for a in read for b in written)
        is_view = all(x.untyped_storage().data_ptr() in places for x in written)
        is_free = op.overloadpacket.__name__ in PRODUCTS | UNMOVED | PICKED
        if not is_free and (is_in_place or not is_view):
            self.bytes += sum(x.numel() * x.element_size() for x in (*read, *written))
        return found


class Opaque(torch.autograd.Function):
    """Attention that counts for nothing."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.shapes = query.shape, key.shape, value.shape
        with _disable_current_modes():
            shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
            return torch.zeros(shape, dtype=query.dtype)

    @staticmethod
    def backward(ctx, gradient):
        with _disable_current_modes():
            return tuple(torch.zeros(shape, dtype=gradient.dtype) for shape in ctx.shapes)


def opaque(module, query, key, value, mask, **_):
    return Opaque.apply(query.bfloat16(), key.bfloat16(), value.bfloat16()), None


AttentionInterface.register("a2d_opaque", opaque)


def moved_by_a_layer(model, num_tokens):
    """Forward and backward of a layer, bytes."""
    model.config._attn_implementation = "a2d_opaque"
    model.zero_grad()
    layer = model.model.layers[0]
    hidden = torch.randn(1, num_tokens, model.config.hidden_size, requires_grad=True)
    position = torch.arange(num_tokens)[None]
    angles = model.model.rotary_emb(hidden, position)
    gradient = torch.ones_like(hidden)
    with Moved() as moved:
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(
                hidden, attention_mask=None, position_ids=position, position_embeddings=angles
            )
        output = output[0] if isinstance(output, tuple) else output
        torch.autograd.backward(output, gradient)
    return moved.bytes


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("heads", [(8, 4), (16, 2)])
def test_bytes_of_a_layer_are_those_of_its_operations(architecture, heads):
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 1}
    query_heads, key_heads = heads
    sizes |= {"num_attention_heads": query_heads, "num_key_value_heads": key_heads}
    if architecture == "qwen3":
        sizes["head_dim"] = 16
    model = tiny_a2d_model(architecture, **sizes).train()
    found = sizes_of(model.config.to_dict())
    less, more = (moved_by_a_layer(model, number) for number in (64, 128))
    assert (more - less) / 64 == pytest.approx(element_wise_bytes(found), rel=0.05)
    weights = (2 * less - more) / found.layer_matrix_parameters
    assert weights == pytest.approx(CAST + GRADIENT, rel=0.05)


def test_bytes_of_logits_are_those_of_the_loss():
    logits = torch.randn(64, 500).bfloat16()
    with Moved() as moved:
        label_loss(logits, torch.arange(64), torch.rand(64), 499, 0.0)
    assert moved.bytes / logits.numel() == pytest.approx(EAGER_LOGITS, rel=0.05)


def test_a_row_is_padded_to_whole_tiles_of_masks():
    assert TAIL_TOKENS == TILE / 2


@pytest.mark.parametrize("device", ["A100-80GB", "H100-80GB"])
def test_an_mfu_is_computed_and_can_be_given(device):
    args = [f"cluster.device={device}"]
    compiled, eager = plan(*args), plan(*args, "train.model.compile=false")
    assert 0.05 < eager.mfu < compiled.mfu < 0.65
    assert eager.seconds.element_wise > 4 * compiled.seconds.element_wise
    assert compiled.compute_s == pytest.approx(sum(vars(compiled.seconds).values()))
    given = plan(*args, "cluster.mfu=0.2")
    peak = 64 * 1e12 * PEAK_TFLOPS[device.partition("-")[0]]
    assert given.compute_s == pytest.approx(given.step_flops / (peak * 0.2))
    assert given.seconds is None and given.hidden_s == 0


def test_stage_1_sends_less_and_stage_2_hides_it():
    slow = "cluster.node_gbit_s=100"
    two, one = plan(slow), plan(slow, "train.deepspeed.zero_optimization.stage=1")
    assert one.network_s < two.network_s and one.hidden_s == 0 < two.hidden_s
    waiting = plan(slow, "train.deepspeed.zero_optimization.overlap_comm=false")
    assert waiting.step_s == pytest.approx(two.step_s + two.hidden_s)


def test_a_device_of_unknown_bandwidth_has_the_old_constant():
    own = ["peak_tflops=100", "memory_gib=12", "link_gbyte_s=1000", "price=0"]
    args = ["cluster.device=mine", *(f"cluster.{x}" for x in own)]
    assert plan(*args).compute_s == plan(*args, "cluster.mfu=0.25").compute_s
    assert plan(*args, "cluster.memory_tbyte_s=2").seconds is not None
