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
    """Preallocated keys and values of `capacity` tokens in every layer, on a CPU.

    Args:
        num_layers: layers of the model.
        num_key_heads: key/value heads, K.
        head_dim: width of a head, d.
        capacity: tokens that fit.
        dtype: of the keys and values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_key_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
    ) -> None:
        self._values = [
            torch.empty(num_key_heads, capacity, head_dim, dtype=dtype) for _ in range(num_layers)
        ]
        # Keys lie as [d, S]: the score product then reads them as they are (15 % faster). Rows
        # one page of memory apart would all fall into the same lines of the L1 cache.
        width = -(-capacity // _PAGE_OF_MEMORY) * _PAGE_OF_MEMORY + 32
        shape = (num_layers, num_key_heads, head_dim, width)
        self._keys = list(torch.empty(shape, dtype=dtype).transpose(2, 3))

    def write(self, layer: int, runs: Runs, key_KnD: Tensor, value_KnD: Tensor) -> None:
        """Puts n tokens, [K, n, d], into the slots of `runs`."""
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

    Args:
        num_layers, num_key_heads, head_dim, capacity, dtype: as in `KVStore`.
        device: where it is.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_key_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (capacity, num_key_heads, head_dim)
        self._keys, self._values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            for _ in range(2)
        )

    def write(self, layer: int, slot_N: Tensor, key_NKd: Tensor, value_NKd: Tensor) -> None:
        """Puts N tokens into their slots."""
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
