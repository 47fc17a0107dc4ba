"""A training run in one process without Ray and DeepSpeed: module, AdamW, and a loop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from a2d_ray.config import TrainConfig
from a2d_ray.data.packing.packed import PackedSet, read_positions
from a2d_ray.models.checkpoint import Checkpoint
from a2d_ray.training.assembly import build_module, load_model
from a2d_ray.training.batches import StepBuilder, rows_per_micro
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.optim import (
    corruption_limit,
    learning_rate,
    make_optimizer,
    open_block_sizes,
)

SCHEDULE_PLACES = 10_000  # resolution of a schedule in the share of a budget


def within_budget(budget_s: float) -> Iterator[tuple[int, int]]:
    """Number and place in the schedule (of `SCHEDULE_PLACES`) of each step that is begun in time.

    Args:
        budget_s: CPU seconds of this process that the steps may take.
    """
    used = 0.0
    number = 0
    while used < budget_s:
        started = time.process_time()
        yield number, int(SCHEDULE_PLACES * used / budget_s)
        number = number + 1
        used = used + time.process_time() - started


@dataclass(frozen=True, kw_only=True)
class BareLoop:
    """What a step needs. Made by `of`.

    Attributes:
        config: of the run.
        packed: its packed set.
        loaded: the checkpoint, whose model is trained in place.
        module: the trained module.
        builder: makes micro-batches of rows.
        optimizer: AdamW on all trained weights.
    """

    config: TrainConfig
    packed: PackedSet
    loaded: Checkpoint
    module: DiffusionModule
    builder: StepBuilder
    optimizer: Any

    @classmethod
    def of(cls, config: TrainConfig, packed_path: str, seed: int) -> Self:
        """A run of one worker on the CPU, with its own seed of order and noise."""
        config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        device = torch.device("cpu")
        loaded, _ = load_model(config, device, None)
        module = build_module(loaded, config, device)
        packed = PackedSet.open(packed_path)
        builder = StepBuilder.of(
            config,
            loaded.tokenizer,
            rows_per_epoch=packed.num_rows("train"),
            rows_per_micro=rows_per_micro(config, config.batch.rows, device.type),
        )
        return cls(
            config=config,
            packed=packed,
            loaded=loaded,
            module=module,
            builder=builder,
            optimizer=make_optimizer(module, config.optim),
        )

    def step(self, number: int, place: int, num_places: int) -> tuple[float, int]:
        """Optimizer step `number`, whose schedule stands at `place` of `num_places`.

        Returns:
            Loss as a run reports it, and target tokens over the views.
        """
        config = self.config
        limit = corruption_limit(place, num_places, config.objective.corruption_warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(place, num_places, config.optim)
        ids = pa.table({"id": np.arange(config.batch.rows)})
        rows = read_positions(ids, self.packed, number * config.batch.rows, config.run.seed)
        objective = config.objective
        sizes = open_block_sizes(place, num_places, objective.block_sizes, objective.block_growth)
        micros = self.builder.build(rows, limit, sizes)
        denominator, num_targets = self.builder.counts(micros)[:2].tolist()
        loss = 0.0
        for layout, noise in micros:
            part = self.module(layout, noise).loss / denominator
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, int(num_targets)
