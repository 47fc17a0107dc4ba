"""This worker among the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """One rank's place in the process group.

    Attributes:
        rank: 0..world-1; rank 0 writes and reports.
        world: ranks.
        device: of this rank's model.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks of a small tensor, on the CPU. Collective."""
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def sum_parts(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Sums over ranks of small vectors, in one exchange and one wait, on the CPU. Collective.

        Args:
            parts: of whatever lies on the device or the CPU; summed as float64.
        """
        sizes = [part.numel() for part in parts]
        there = [part.double().flatten().to(self.device, non_blocking=True) for part in parts]
        return list(self.sum(torch.cat(there)).split(sizes))

    def each(self, value: float) -> Tensor:
        """A vector to be summed over ranks [W]: this rank's value at its place, else zeros."""
        values_W = torch.zeros(self.world, dtype=torch.float64)
        values_W[self.rank] = value
        return values_W

    def texts(self, text: str, longest: int = 64) -> list[str]:
        """A short text of every rank, by rank; longer ones are cut at `longest`. Collective."""
        codes_WC = torch.zeros(self.world, longest, dtype=torch.float64)
        code = torch.tensor(list(text.encode()[:longest]), dtype=torch.float64)
        codes_WC[self.rank, : len(code)] = code
        rows = self.sum(codes_WC).long().tolist()
        return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return bool(self.sum(torch.tensor([float(flag)])).item())
