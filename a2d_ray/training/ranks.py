"""This worker among the others."""

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

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return bool(self.sum(torch.tensor([float(flag)])).item())
