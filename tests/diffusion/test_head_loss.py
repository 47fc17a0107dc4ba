"""A loss that gives its own gradient: plain autograd's, in fewer products, casts and bytes."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from a2d_ray.diffusion.losses import label_loss, masked_cross_entropy, taught_loss
from a2d_ray.models.parts import head_of
from tests.closeness import assert_close
from tests.tiny import tiny_a2d_model

NUM_TOKENS, WIDTH, VOCABULARY, MASK = 23, 8, 50, 49


def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, MASK, (NUM_TOKENS,), generator=generator)
    return hidden, weight, labels, torch.rand(NUM_TOKENS, generator=generator)


def plain(hidden, head, labels, weight, excluded, chunk=NUM_TOKENS):
    """By autograd, with logits that the backward pass computes again where there are chunks."""

    def part(hidden, labels, weight):
        logits = head(hidden).float()
        if excluded is not None:
            logits = logits.masked_fill(torch.arange(VOCABULARY) == excluded, -torch.inf)
        return (cross_entropy(logits, labels, reduction="none") * weight).sum()

    chunks = zip(*(x.split(chunk) for x in (hidden, labels, weight)), strict=True)
    return sum(checkpoint(part, *values, use_reentrant=False) for values in chunks)


def tied(hidden, weight):
    return linear(hidden + weight[:1], weight)


def capped(hidden, weight):
    return torch.tanh(linear(hidden, weight, weight[:, 0]) / 2) * 2


def adapted(hidden, weight):
    return linear(hidden, weight.detach()) + linear(linear(hidden, weight[:3]), weight[:, :3])


@pytest.mark.parametrize("head", [linear, tied, capped, adapted])
@pytest.mark.parametrize(("excluded", "chunk"), [(MASK, 5), (None, 5), (MASK, 100)])
def test_gradients_are_those_of_autograd_for_every_head(head, excluded, chunk):
    """The weight is read before the head too, and what is behind the loss scales its gradient."""
    hidden, weight, labels, share = inputs()
    results = []
    for loss in (plain, partial(masked_cross_entropy, chunk_tokens=chunk)):
        found = loss(hidden * weight[0], partial(head, weight=weight), labels, share, excluded)
        total = found if loss is plain else found[0]
        results.append([total, *torch.autograd.grad(3 * total + weight.sum(), (hidden, weight))])
    assert_close(*results)


class Work(TorchDispatchMode):
    """Casts of the head's weight, and what is written in tensors [n, V] with n > WIDTH."""

    def __init__(self, vocabulary=VOCABULARY):
        super().__init__()
        self.vocabulary, self.casts, self.bytes, self.operations = vocabulary, 0, 0, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = op(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not is_view(found, args):
            name = op.overloadpacket.__name__
            is_cast = name == "_to_copy" and found.dtype == torch.bfloat16
            self.casts += is_cast and found.shape == (self.vocabulary, WIDTH)
            if found.dim() > 1 and found.shape[-1] == self.vocabulary and found.shape[-2] > WIDTH:
                self.bytes += found.numel() * found.element_size()
                self.operations.append(name)
        return found


def is_view(found, args):
    """Whether an operation only looks at one of its arguments."""
    place = found.untyped_storage().data_ptr()
    theirs = [x for x in args if isinstance(x, torch.Tensor)]
    is_written = any(x is found for x in theirs)  # in place
    return not is_written and place in [x.untyped_storage().data_ptr() for x in theirs]


def work_of(loss):
    hidden, weight, labels, share = inputs()
    head = partial(linear, weight=weight)
    with Work() as work, FlopCounterMode(display=False) as flops:
        with torch.autocast("cpu", torch.bfloat16):
            total = loss(hidden, head, labels, share, MASK)
        torch.autograd.grad(total, (hidden, weight))
    return work, flops.get_total_flops() / (2 * NUM_TOKENS * WIDTH * VOCABULARY)


def test_three_products_one_cast_and_fewer_bytes():
    chunk = 12
    theirs, their_products = work_of(partial(plain, chunk=chunk))
    ours, products = work_of(lambda *args: masked_cross_entropy(*args, chunk_tokens=chunk)[0])
    assert (products, their_products) == (3, 4)
    assert (ours.casts, theirs.casts) == (1, 1 + 2)  # and again in every chunk's backward
    assert ours.bytes < 0.6 * theirs.bytes


def test_a_gradient_is_used_once():
    hidden, weight, labels, share = inputs()
    total, _ = masked_cross_entropy(hidden, partial(linear, weight=weight), labels, share, MASK)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_head_copies_no_gradient_of_logits():
    """Selecting the logits of the only row would, in its backward pass."""
    model = tiny_a2d_model("qwen3")
    hidden = torch.randn(NUM_TOKENS, 32, requires_grad=True)
    logits = head_of(model)(hidden)
    gradient = torch.randn_like(logits)
    with Work(vocabulary=320) as work:
        torch.autograd.grad(logits, (hidden, model.lm_head.weight), gradient)
    assert work.operations == []


@pytest.mark.parametrize("loss", [label_loss, taught_loss])
def test_what_follows_the_logits_is_one_graph_in_two_compilations(loss):
    torch._dynamo.reset()
    seen = CompileCounter()
    compiled = torch.compile(loss, dynamic=True, fullgraph=True, backend=seen)
    hidden, weight, labels, share = inputs()
    for size in (NUM_TOKENS, 7, 12):
        logits = linear(hidden, weight).detach()[:size].bfloat16()
        values = (labels[:size], share[:size], MASK, 0.0)
        if loss is taught_loss:
            values = (logits.roll(1, 0), share[:size], MASK)
        assert_close(compiled(logits, *values), loss(logits, *values))
    assert seen.frame_count <= 2
