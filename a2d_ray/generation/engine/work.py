"""What a running request brings to a round."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from a2d_ray.generation.engine.cache import Runs
from a2d_ray.generation.engine.storage import SequenceStorage, StoredBlocks

NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Which keys the last tokens of a work see, where that is not a prefix.

    Attributes:
        num_common: keys that all of them see, from the first on.
        hidden_mS: bool, which of the other keys each of them does not see.
    """

    num_common: int
    hidden_mS: Tensor


@dataclass(frozen=True, kw_only=True)
class Work:
    """New tokens of one branch of a sequence in a round.

    Attributes:
        sequence: the sequence.
        storage: of its keys and values; None: nothing is stored (MDLM).
        chunk: finished blocks among them, the first ones, which become pages.
        ids_n: ids of the new tokens, int64.
        position_n: their positions, int64.
        num_noised: how many of them, the last ones, belong to the noised stream.
        new_runs: slots of their keys and values; None: nothing is stored.
        all_runs: slots of all keys, their own last.
        num_visible: how many keys each of the first tokens sees.
        sight: what the tokens behind those see; None: there are none.
        asked: canvas positions whose tokens are to be predicted, int64; empty while a prompt is
            being stored.
        rows: new tokens whose own logits are read for `asked`; None: those at these positions, or
            before them where the model's logits are shifted.
    """

    sequence: Any
    storage: SequenceStorage | None
    chunk: StoredBlocks
    ids_n: Tensor
    position_n: Tensor
    num_noised: int
    new_runs: Runs | None
    all_runs: Runs
    num_visible: list[int]
    sight: Sight | None = None
    asked: Tensor
    rows: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """New tokens."""
        return len(self.ids_n)

    @property
    def start(self) -> int:
        """Position of the first new token."""
        return int(self.position_n[0])
