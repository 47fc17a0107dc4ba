"""Keys and values of all requests: one slot per token, written once, read in place.

Slots are addressed by runs, (start, stop) pairs: tokens of one request mostly lie side by side, so
reading them is a view. K key/value heads, d head width, S keys, n new tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Runs = Sequence[tuple[int, int]]
_PAGE_OF_MEMORY = 2048  # bfloat16 numbers in 4 KiB


class KVStore:
    """Keys and values of `capacity` tokens in every layer, on a CPU.

    The first forward says what a layer takes: heads, widths and dtype may differ by layer, and the
    widths of keys and values. A layer is the n-th attention of a forward.

    Args:
        capacity: tokens that fit.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def _add_layer(self, key_KnD: Tensor, value_KnD: Tensor) -> None:
        """Room for keys and values like these."""
        num_heads, _, width = value_KnD.shape
        # Keys lie as [d, S]: the score product then reads them as they are (15 % faster). Rows
        # one page of memory apart would all fall into the same lines of the L1 cache.
        padded = -(-self._capacity // _PAGE_OF_MEMORY) * _PAGE_OF_MEMORY + 32
        shape = (key_KnD.shape[0], key_KnD.shape[2], padded)
        dtype = key_KnD.dtype
        with torch.inference_mode(False):  # an inference tensor could not be written outside
            self._values.append(torch.empty(num_heads, self._capacity, width, dtype=dtype))
            self._keys.append(torch.empty(shape, dtype=dtype).transpose(1, 2))

    def write(self, layer: int, runs: Runs, key_KnD: Tensor, value_KnD: Tensor) -> None:
        """Puts n tokens, [K, n, d], into the slots of `runs`."""
        if layer == len(self._values):
            self._add_layer(key_KnD, value_KnD)
        first = 0
        for start, stop in runs:
            last = first + stop - start
            self._keys[layer][:, start:stop] = key_KnD[:, first:last]
            self._values[layer][:, start:stop] = value_KnD[:, first:last]
            first = last

    def read(self, layer: int, runs: Runs) -> tuple[Tensor, Tensor]:
        """Keys and values [K, S, d] of the slots of `runs`: a view if it is a single run."""
        keys = self._keys[layer]
        values = self._values[layer]
        if len(runs) == 1:
            start, stop = runs[0]
            return keys[:, start:stop], values[:, start:stop]
        # Keys are joined along their last dimension in memory, to stay [d, S].
        joined = torch.cat([keys[:, a:b].transpose(1, 2) for a, b in runs], dim=2).transpose(1, 2)
        return joined, torch.cat([values[:, a:b] for a, b in runs], dim=1)


class SlotStore:
    """The same on an accelerator, a row [K, d] per slot: fused attention reads such rows.

    Behind the slots of tokens is one more, which padding writes and reads (`padding`).

    Args:
        capacity: tokens that fit.
    """

    def __init__(self, capacity: int) -> None:
        self.scratch = capacity  # the slot
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def _add_layer(self, key_NKd: Tensor, value_NKd: Tensor) -> None:
        """Room for keys and values like these."""
        with torch.inference_mode(False):
            for held, new in ((self._keys, key_NKd), (self._values, value_NKd)):
                shape = (self.scratch + 1, *new.shape[1:])
                held.append(torch.zeros(shape, dtype=new.dtype, device=new.device))

    def write(self, layer: int, slot_N: Tensor, key_NKd: Tensor, value_NKd: Tensor) -> None:
        """Puts N tokens into their slots."""
        if layer == len(self._values):
            self._add_layer(key_NKd, value_NKd)
        self._keys[layer].index_copy_(0, slot_N, key_NKd)
        self._values[layer].index_copy_(0, slot_N, value_NKd)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, [slots, K, d]."""
        return self._keys[layer], self._values[layer]


def join_runs(runs: Runs) -> list[tuple[int, int]]:
    """The same slots in the same order, neighbours merged; empty runs are dropped."""
    joined: list[tuple[int, int]] = []
    for start, stop in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif stop > start:
            joined.append((start, stop))
    return joined


def split_runs(runs: Runs, num_tokens: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first `num_tokens` slots, and the rest."""
    head: list[tuple[int, int]] = []
    for index, (start, stop) in enumerate(runs):
        if num_tokens <= stop - start:
            cut = start + num_tokens
            return join_runs([*head, (start, cut)]), join_runs([(cut, stop), *runs[index + 1 :]])
        head.append((start, stop))
        num_tokens -= stop - start
    assert num_tokens == 0, "more slots were asked for than there are"
    return head, []
