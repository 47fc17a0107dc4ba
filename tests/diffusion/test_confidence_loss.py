"""The confidence loss is the entropy of what is predicted rightly, and nothing else."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from a2d_ray.diffusion.losses import masked_cross_entropy
from tests.closeness import ROUNDING, assert_close

MASK, WEIGHT = 5, 0.7


def inputs():
    """Hidden states and a head of 11 tokens; labels are right for every other token."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 8, generator=generator).requires_grad_()
    head = torch.randn(11, 8, generator=generator).requires_grad_()
    logits = linear(hidden, head).detach()
    logits[:, MASK] = -torch.inf
    labels = logits.argmax(-1)
    labels[::2] = logits[::2].argmin(-1)
    labels[labels == MASK] = MASK - 1
    return hidden, head, labels, torch.rand(9, generator=generator)


def naive(hidden, head, labels, weight, excluded):
    logits = linear(hidden, head)
    if excluded is not None:
        kept = [i for i in range(len(head)) if i != excluded]
        labels = torch.tensor([kept.index(int(label)) for label in labels])
        logits = logits[:, kept]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    loss = cross_entropy(logits, labels, reduction="none")
    return (loss * weight).sum() + WEIGHT * entropy[logits.argmax(-1) == labels].sum()


@pytest.mark.parametrize("excluded", [MASK, None])
@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_entropy_of_right_tokens_is_added(excluded, chunk_tokens):
    hidden, head, labels, weight = inputs()
    ours, _ = masked_cross_entropy(
        hidden,
        partial(linear, weight=head),
        labels,
        weight,
        excluded,
        confidence_weight=WEIGHT,
        chunk_tokens=chunk_tokens,
    )
    expected = naive(hidden, head, labels, weight, excluded)
    assert_close(ours, expected)
    mine, theirs = (torch.autograd.grad(loss, (hidden, head)) for loss in (ours, expected))
    assert_close(mine, theirs)


def test_wrong_tokens_are_left_to_the_cross_entropy():
    hidden, head, labels, weight = inputs()
    gradients = [
        torch.autograd.grad(
            masked_cross_entropy(
                hidden, partial(linear, weight=head), labels, weight, MASK, confidence_weight=c
            )[0],
            hidden,
        )[0]
        for c in (0.0, WEIGHT)
    ]
    difference = (gradients[0] - gradients[1]).abs().amax(-1)
    is_moved = difference > ROUNDING * gradients[0].abs().max()
    assert is_moved.tolist() == [bool(i % 2) for i in range(9)]
