"""Dataclasses of tensors that move as one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor


class Tensors:
    """A frozen dataclass whose tensors move together; other fields stay."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor moved, to a device or into pinned memory."""
        tensors = {k: move(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        changed: Any = replace(self, **tensors)  # type: ignore[type-var]
        return changed  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> Self:
        """The same on another device. Copies to the host are waited for: they are read at once."""
        is_async = torch.device(device).type != "cpu"
        return self.moved(lambda x: x.to(device, non_blocking=is_async))
