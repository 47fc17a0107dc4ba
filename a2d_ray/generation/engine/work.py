"""What a running request brings to a round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from a2d_ray.generation.decoding.denoise import Commitment, Inquiry
from a2d_ray.generation.engine.cache import Runs
from a2d_ray.generation.engine.storage import SequenceStorage, StoredBlocks


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
        ids: of the new tokens.
        positions: theirs.
        num_noised: how many of them, the last ones, belong to the noised stream.
        new_runs: slots of their keys and values; None: nothing is stored.
        all_runs: slots of all keys, their own last.
        num_visible: how many keys each of the first tokens sees.
        sight: what the tokens behind those see; None: there are none.
        spare_rows: new tokens whose logits may be asked for when the round's answers are known.
    """

    sequence: Any
    storage: SequenceStorage | None
    chunk: StoredBlocks
    ids: Sequence[int]
    positions: Sequence[int]
    num_noised: int
    new_runs: Runs | None
    all_runs: Runs
    num_visible: list[int]
    sight: Sight | None = None
    spare_rows: Sequence[int] = ()

    @property
    def num_tokens(self) -> int:
        """New tokens."""
        return len(self.ids)

    @property
    def start(self) -> int:
        """Position of the first new token."""
        return self.positions[0]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a round decides for one request.

    Attributes:
        asked: what is asked.
        works: of each branch, whose logits answer it.
        rows: new tokens of the only work whose own logits are read, one per position; None: those
            at the positions, or before them where the model's logits are shifted.
    """

    asked: Inquiry
    works: tuple[Work, ...]
    rows: Sequence[int] | None = None


Verdict = Commitment | Exception
"""Of a question: what is committed, or why the request cannot go on."""


def idle_work(
    num_tokens: int, *, num_kept: int = 0, new_runs: Runs | None = None, all_runs: Runs = ()
) -> Work:
    """A work that nobody asked for: to take memory, and to measure.

    Args:
        num_tokens: new ones.
        num_kept: stored ones that they see.
        new_runs, all_runs: as in `Work`.
    """
    stop = num_kept + num_tokens
    return Work(
        sequence=None,
        storage=None,
        chunk=StoredBlocks(start=0, stop=0, pages=()),
        ids=[0] * num_tokens,
        positions=range(num_kept, stop),
        num_noised=0,
        new_runs=new_runs,
        all_runs=all_runs,
        num_visible=[*range(num_kept + 1, stop + 1)],
    )
