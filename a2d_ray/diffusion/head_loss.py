"""A loss of logits that gives its own gradient: the head runs once per chunk, forward and backward.

Autograd would keep logits for the backward pass, or compute them again. Here a chunk's gradient is
taken while its logits are there, and the backward pass scales what was kept: three products with
the head's weight per token instead of four, and one cast of the weight per forward.

N tokens, H width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Head = Callable[[Tensor], Tensor]
"""Final hidden states [N, H] -> logits [N, V]: the language-model head and what follows it."""

LogitLoss = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""(logits [n, V], values [n, ...], ...) -> sum of the loss and single losses [n], both float32, and
the sum's gradient [n, V] in the dtype of the logits. No autograd; logits may be written."""


def summed_loss(
    loss: LogitLoss, head: Head, hidden_NH: Tensor, values: tuple[Tensor, ...], chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Sum (differentiable scalar) and single values [N] (detached) of a loss of logits.

    Gradients reach the hidden states and what the head reads. Logits exist for one chunk at a
    time.

    Args:
        loss: of logits and of the chunk's part of `values`.
        head: final hidden states to logits.
        hidden_NH: final hidden states of N > 0 tokens.
        values: tensors [N, ...] that the loss reads beside the logits.
        chunk_tokens: tokens per chunk.
    """
    chunks = list(zip(*(x.split(chunk_tokens) for x in (hidden_NH, *values)), strict=True))
    if not torch.is_grad_enabled():
        parts = [loss(head(hidden_nH), *more)[:2] for hidden_nH, *more in chunks]
        return torch.stack([total for total, _ in parts]).sum(), torch.cat([n for _, n in parts])
    # No token: it tells what the head reads, and autocast keeps the cast weight for the chunks.
    leaves = _leaves(head(hidden_NH[:0].detach()))
    total, losses = _LossWithGradient.apply(loss, head, chunks, hidden_NH, *leaves)
    return total, losses


class _LossWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: LogitLoss,
        head: Head,
        chunks: list[tuple[Tensor, ...]],
        hidden_NH: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sums, losses, hidden_gradients = [], [], []
        kept: list[Tensor] = []
        for number, (hidden_nH, *values) in enumerate(chunks):
            with torch.enable_grad():
                read = hidden_nH.detach().requires_grad_()
                logits = head(read)
            total, each, gradient = loss(logits.detach(), *values)
            with torch.autocast(hidden_NH.device.type, enabled=False):
                mine, *found = torch.autograd.grad(logits, (read, *leaves), gradient)
            sums.append(total)
            losses.append(each)
            hidden_gradients.append(mine)
            kept = _add(kept, found, number)
        ctx.save_for_backward(torch.cat(hidden_gradients), *kept)
        each_loss = torch.cat(losses)
        ctx.mark_non_differentiable(each_loss)
        return torch.stack(sums).sum(), each_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In place: one is as large as the head. A second backward finds them changed, and raises.
        return None, None, None, *(gradient.mul_(upstream) for gradient in ctx.saved_tensors)


def _add(kept: list[Tensor], found: list[Tensor], number: int) -> list[Tensor]:
    """The sum of the gradients of chunks 0 ... number. Only sums of our own are written."""
    if number == 0:
        return found
    if number == 1:
        return [a + b for a, b in zip(kept, found, strict=True)]
    return [a.add_(b) for a, b in zip(kept, found, strict=True)]


def _leaves(output: Tensor) -> list[Tensor]:
    """The tensors whose gradients an output has, such as a head's weight."""
    found: dict[int, Tensor] = {}
    seen = set()
    queue: list[Any] = [output.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad"):
            found[id(node.variable)] = node.variable
        queue += [before for before, _ in node.next_functions]
    return list(found.values())
