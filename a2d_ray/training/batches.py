"""Rows of one step and rank -> micro-batches of layout and noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa
import torch
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.data.packing.packed import to_packed_rows
from a2d_ray.diffusion.layout import PAD_DOC, Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.losses import Norm, denominator, normalise
from a2d_ray.diffusion.noise import (
    Noise,
    NoiseSpec,
    draw_block_shifts,
    draw_block_sizes,
    draw_noise,
    eos_tail_lengths,
)
from a2d_ray.diffusion.recipe import recipe_rows
from a2d_ray.training.objective import layout_spec, noise_spec

CPU_TOKENS = 2_048
COUNTS = ("denominator", "targets", "tokens", "masked", "eos_targets")


def rows_per_micro(config: TrainConfig, rows: int, device_type: str) -> int:
    """Rows of a micro-batch: `batch.rows_per_device`, or what is good for the device.

    A GPU gets the worker's whole share. A CPU gets about `CPU_TOKENS` tokens: 16,000
    of a model of 135M parameters take over 20 GB. The step is the same.

    Args:
        rows: a worker's share of a step.
        device_type: cpu, cuda, ...
    """
    if config.batch.rows_per_device is not None:
        return config.batch.rows_per_device
    zero = config.deepspeed["zero_optimization"]
    needs_one = zero["stage"] == 1 and zero.get("overlap_comm")  # see `check_deepspeed`
    if device_type != "cpu" or needs_one:
        return rows
    length = config.data.tokens_per_row if config.data.packing else config.data.max_length
    most = max(1, CPU_TOKENS // length)
    return max(size for size in range(1, rows + 1) if rows % size == 0 and size <= most)


@dataclass(frozen=True, kw_only=True)
class StepBuilder:
    """Builds the micro-batches of a step from its rows: a pure function of rows and step.

    Attributes:
        spec: layout of the objective.
        noise: noise distribution.
        norm: what the loss is divided by.
        seed: of the noise.
        rows_per_epoch: packed rows of the training split.
        rows_per_micro: rows of one forward.
        eos_tail: mdlm: longest tail of EOS targets.
        is_recipe: rows are filled as in the public recipe.
        bos_id: id of BOS, where the tokenizer has one.
        block_sizes: bd3lm: sizes that documents draw from, if more than one.
        is_first_block_random: bd3lm: documents draw the length of their segments' first blocks.
    """

    spec: LayoutSpec
    noise: NoiseSpec
    norm: Norm
    seed: int
    rows_per_epoch: int
    rows_per_micro: int
    eos_tail: int
    is_recipe: bool = False
    bos_id: int | None = None
    block_sizes: tuple[int, ...] = ()
    is_first_block_random: bool = False

    @classmethod
    def of(
        cls, config: TrainConfig, tokenizer: Any, *, rows_per_epoch: int, rows_per_micro: int
    ) -> Self:
        """The builder that a run's configuration asks for."""
        return cls(
            spec=layout_spec(config.objective, eos_id=tokenizer.eos_token_id),
            noise=noise_spec(config.objective),
            norm=config.objective.norm,
            seed=config.run.seed,
            rows_per_epoch=rows_per_epoch,
            rows_per_micro=rows_per_micro,
            eos_tail=config.data.eos_tail,
            is_recipe=config.objective.preset == "reference",
            bos_id=tokenizer.bos_token_id,
            block_sizes=config.objective.block_sizes,
            is_first_block_random=config.objective.first_block == "random",
        )

    def build(
        self, batch: pa.Table, max_fraction: float, block_sizes: tuple[int, ...] | None = None
    ) -> list[tuple[Layout, Noise]]:
        """Micro-batches of this rank's rows (with their column `position`).

        Args:
            batch: packed rows.
            max_fraction: largest corrupted share of a block.
            block_sizes: of which a document draws its own; None: all.
        """
        position_R = torch.tensor(batch.column("position").to_numpy())
        open_now = self if block_sizes is None else replace(self, block_sizes=block_sizes)
        rows = to_packed_rows(batch)
        return open_now.micros(rows, position_R // self.rows_per_epoch, max_fraction)

    def micros(
        self, rows: list[PackedRow], epoch_R: Tensor, max_fraction: float = 1.0
    ) -> list[tuple[Layout, Noise]]:
        """Micro-batches of rows in given epochs (int64 [R])."""
        starts = range(0, len(rows), self.rows_per_micro)
        parts = [slice(start, start + self.rows_per_micro) for start in starts]
        return [self._micro(rows[part], epoch_R[part], max_fraction) for part in parts]

    def counts(self, micros: Sequence[tuple[Any, ...]]) -> Tensor:
        """What a step's micro-batches hold, in the order of `COUNTS`; float64, adds up over ranks.

        The loss of a step is the sum of its losses divided by the sum of its denominators.
        Targets, their masked ones and EOS ones are summed over the views.
        """
        each = [
            torch.stack(
                [
                    denominator(layout, self.norm),
                    layout.num_targets,
                    (layout.doc_RT != PAD_DOC).sum(),
                    noise.is_masked_RT.sum(),
                    (layout.is_target_RT & (layout.ids_RT == self.spec.eos_id)).sum(),
                ]
            )
            for layout, noise, *_ in micros
        ]
        return torch.stack(each).sum(0).double()

    def _micro(
        self, rows: list[PackedRow], epoch_R: Tensor, max_fraction: float
    ) -> tuple[Layout, Noise]:
        if self.is_recipe:
            rows = recipe_rows(rows, self.spec, bos_id=self.bos_id)
        layout = self.lay_out(rows, epoch_R)
        return layout, self.draw_noise(layout, epoch_R, max_fraction)

    def lay_out(self, rows: list[PackedRow], epoch_R: Tensor) -> Layout:
        """The streams of a micro-batch's rows."""
        return build_layout(rows, self.spec, **self._document_draws(rows, epoch_R))

    def draw_noise(self, layout: Layout, epoch_R: Tensor, max_fraction: float = 1.0) -> Noise:
        """The masks of a layout, with weights that are normalised."""
        noise = draw_noise(
            layout, self.noise, seed=self.seed, epoch_R=epoch_R, max_fraction=max_fraction
        )
        return normalise(noise, layout, self.norm)

    def _document_draws(self, rows: list[PackedRow], epoch_R: Tensor) -> dict[str, Tensor]:
        """What is drawn once per document: the EOS tail (mdlm), or the block grid (bd3lm)."""
        num_docs_R = torch.tensor([row.doc_id_D.numel() for row in rows])
        doc_id_D = torch.cat([row.doc_id_D for row in rows])
        epoch_D = torch.repeat_interleave(epoch_R, num_docs_R)
        if self.spec.objective == "mdlm":
            tails = eos_tail_lengths(
                doc_id_D, seed=self.seed, epoch_D=epoch_D, longest=self.eos_tail
            )
            return {"eos_tail_D": tails}
        draws = {}
        size_D = torch.full_like(doc_id_D, self.spec.block_size)
        if self.block_sizes not in ((), (self.spec.block_size,)):
            size_D = draw_block_sizes(doc_id_D, self.block_sizes, seed=self.seed, epoch_D=epoch_D)
            draws["block_size_D"] = size_D
        if self.is_first_block_random:
            draws["block_shift_D"] = draw_block_shifts(
                doc_id_D, size_D, seed=self.seed, epoch_D=epoch_D
            )
        return draws


def pinned(micros: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The micro-batches in memory that a GPU reads while the host goes on."""
    return [tuple(part.moved(torch.Tensor.pin_memory) for part in parts) for parts in micros]


def to_device(micros: Sequence[tuple[Any, ...]], device: torch.device) -> Iterator[tuple[Any, ...]]:
    """The micro-batches, one at a time, where the model is."""
    for parts in micros:
        yield tuple(part.to(device) for part in parts)
