"""Rows of one step and rank -> micro-batches of layout and noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.data.packed import to_packed_rows
from a2d_ray.diffusion.layout import Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.noise import Noise, NoiseSpec, draw_noise, eos_tail_lengths


@dataclass(frozen=True)
class StepBuilder:
    """Builds the micro-batches of a step from its rows: a pure function of rows and step.

    Attributes:
        spec: layout of the objective.
        noise: noise distribution.
        seed: of the noise.
        rows_per_epoch: packed rows of the training split.
        rows_per_micro: rows of one forward.
        eos_tail: mdlm: longest tail of EOS targets.
    """

    spec: LayoutSpec
    noise: NoiseSpec
    seed: int
    rows_per_epoch: int
    rows_per_micro: int
    eos_tail: int

    def build(self, batch: pa.Table, max_fraction: float) -> list[tuple[Layout, Noise]]:
        """Micro-batches of this rank's rows (with their column `position`)."""
        rows = to_packed_rows(batch)
        position_R = torch.tensor(batch.column("position").to_numpy())
        epoch_R = position_R // self.rows_per_epoch
        starts = range(0, len(rows), self.rows_per_micro)
        parts = [slice(start, start + self.rows_per_micro) for start in starts]
        return [self._micro(rows[part], epoch_R[part], max_fraction) for part in parts]

    def _micro(
        self, rows: list[PackedRow], epoch_R: Tensor, max_fraction: float
    ) -> tuple[Layout, Noise]:
        layout = build_layout(rows, self.spec, eos_tail_D=self._tails(rows, epoch_R))
        noise = draw_noise(
            layout, self.noise, seed=self.seed, epoch_R=epoch_R, max_fraction=max_fraction
        )
        return layout, noise

    def _tails(self, rows: list[PackedRow], epoch_R: Tensor) -> Tensor | None:
        if self.spec.objective != "mdlm":
            return None
        num_docs_R = torch.tensor([row.doc_id_D.numel() for row in rows])
        doc_id_D = torch.cat([row.doc_id_D for row in rows])
        epoch_D = torch.repeat_interleave(epoch_R, num_docs_R)
        return eos_tail_lengths(doc_id_D, seed=self.seed, epoch_D=epoch_D, longest=self.eos_tail)


def layout_spec(config: TrainConfig, *, eos_id: int, pad_id: int) -> LayoutSpec:
    """The layout that a configuration asks for."""
    objective = config.objective
    return LayoutSpec(
        objective=objective.name,
        block_size=objective.block_size,
        block_grid=objective.block_grid,
        views=objective.views,
        eos_id=eos_id,
        pad_id=pad_id,
        causal_clean=objective.clean_attention == "causal",
    )


def noise_spec(config: TrainConfig) -> NoiseSpec:
    """The noise that a configuration asks for."""
    objective = config.objective
    return NoiseSpec(
        kind=objective.noise,
        per=objective.noise_per,
        schedule=objective.schedule,
        is_weighted=objective.weight == "nelbo",
    )


def counts(micros: list[tuple[Layout, Noise]]) -> Tensor:
    """[target tokens over all views, laid-out tokens, masked tokens] of a step's micro-batches."""
    targets = sum(int(layout.num_targets) for layout, _ in micros)
    tokens = sum(int((layout.doc_RT >= 0).sum()) for layout, _ in micros)
    masked = sum(int(noise.is_masked_RT.sum()) for _, noise in micros)
    return torch.tensor([targets, tokens, masked], dtype=torch.float64)


def to_device(
    micros: list[tuple[Layout, Noise]], device: torch.device
) -> Iterator[tuple[Layout, Noise]]:
    """The micro-batches, one at a time, where the model is."""
    for layout, noise in micros:
        yield layout.to(device), noise.to(device)
