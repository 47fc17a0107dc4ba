"""What a document costs: its tokens over all streams, counted without building its layout.

Equal to `diffusion.layout.document_costs` (a property test compares them), in plain arithmetic,
so that the tasks that tokenize need not load torch.
"""

from dataclasses import dataclass
from typing import Literal

from a2d_ray.config import DataSection, ObjectiveSection, longest_eos_tail
from a2d_ray.data.packing.documents import Cutting, Document

_WASTE = 0.04  # share of a row that plain text may leave empty for the sake of longer documents


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The streams that a packed set is made for.

    Attributes:
        objective: ``mdlm`` or ``bd3lm``.
        block_grid: where blocks start (bd3lm).
        block_size: the largest block size that the set serves (bd3lm).
        views: the most noised copies that it serves.
        eos_tail: the longest tail of EOS targets behind a finished answer (mdlm), or 0.
        is_bound: count so that the row also holds any smaller block size that divides
            `block_size`, and what reads the AR mode: the clean stream whole, answers filled up
            to `block_size`.
        is_first_block_random: count the longest fill behind an answer, wherever its blocks begin.
        right_shift: every block up to the last target's has noised copies (bd3lm).
    """

    objective: Literal["mdlm", "bd3lm"]
    block_grid: Literal["segment", "absolute", "prompt_end"]
    block_size: int
    views: int
    eos_tail: int = 0
    is_bound: bool = False
    is_first_block_random: bool = False
    right_shift: bool = False

    @classmethod
    def of(cls, data: DataSection, objective: ObjectiveSection) -> "Streams":
        """What the options ask for."""
        is_mdlm = objective.name == "mdlm"
        largest = data.max_block_size or objective.largest_block
        return cls(
            objective=objective.name,
            block_grid="segment" if is_mdlm else objective.block_grid,
            block_size=1 if is_mdlm else largest,
            views=data.max_views or objective.views,
            eos_tail=longest_eos_tail(data, objective),
            is_bound=not is_mdlm
            and (
                data.max_block_size is not None
                or len(objective.block_sizes) > 1
                or objective.reads_ar_mode
                or objective.first_block == "random"
            ),
            is_first_block_random=objective.first_block == "random",
            right_shift=not is_mdlm and objective.right_shift_logits,
        )

    def cutting(self, data: DataSection) -> Cutting:
        """How conversations become documents."""
        return Cutting(
            max_length=data.max_length,
            truncation=data.truncation,
            edge=1 if self.block_grid == "absolute" else self.block_size,
            targets=data.targets,
            is_split=self.objective == "mdlm",
        )

    def cost(self, document: Document) -> int:
        """Tokens of a document over all streams. Its last segment must be a target."""
        total = document.num_tokens
        if self.objective == "mdlm":
            return self.views * (total + self.eos_tail * document.is_complete)
        size = self.block_size
        last = len(document.segments[-1])
        if self.block_grid == "absolute":
            noisy = self._filled(total, document.is_complete)
            noisy -= 0 if self.right_shift else (total - last) // size * size
            last_block = (total - 1) % size + 1
        else:
            flags = zip(document.segments, document.is_target, strict=True)
            targets = [len(segment) for segment, is_target in flags if is_target]
            noisy = sum(self._filled(length, True) for length in targets[:-1])
            noisy += self._filled(last, document.is_complete)
            noisy += total - last if self.right_shift else 0
            last_block = (last - 1) % size + 1
        clean = total if self.is_bound else total - last_block
        return clean + self.views * noisy

    def longest_text(self, max_length: int, tokens_per_row: int) -> int:
        """Tokens of each stretch that plain text is cut into, so that whole ones fill a row.

        Args:
            max_length: longest document in tokens.
            tokens_per_row: capacity of a row over all streams.

        Returns:
            At most `max_length`; a multiple of the block size where one fits.
        """
        streams = self.views + (self.objective == "bd3lm")
        capacity = tokens_per_row // streams
        if capacity // max_length * max_length >= capacity * (1 - _WASTE):
            return max_length
        per_row = -(-capacity // max_length)
        fair = min(max_length, capacity // per_row - self.eos_tail)
        return fair // self.block_size * self.block_size if fair >= self.block_size else fair

    def _filled(self, length: int, is_complete: bool) -> int:
        if not is_complete:
            return length
        if self.is_first_block_random:
            return length + self.block_size - 1
        return -(-length // self.block_size) * self.block_size
