"""The training loop of one Ray Train worker."""

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConsistencyMode
from torch import Tensor

from a2d_ray.cli import to_yaml
from a2d_ray.config import TrainConfig
from a2d_ray.data.packed import PackedSet
from a2d_ray.diffusion.likelihood import nelbo_sums
from a2d_ray.models.checkpoint import load_checkpoint, save_checkpoint
from a2d_ray.models.device import resolve_dtype
from a2d_ray.training.batches import COUNTS, StepBuilder, to_device
from a2d_ray.training.engine import deepspeed_config, make_engine, take_step, whole_weights
from a2d_ray.training.gauges import RunGauges
from a2d_ray.training.module import DiffusionModule
from a2d_ray.training.objective import loss_spec, trained_contract
from a2d_ray.training.optim import (
    corruption_limit,
    freeze_below,
    learning_rate,
    make_optimizer,
)
from a2d_ray.training.reporting import MetricsLog, RunReporter
from a2d_ray.training.state import STATE_DIRECTORY, Progress, restore_state, save_state
from a2d_ray.training.storage import RunDirectory

FINAL_NAME = "checkpoint-final"


@dataclass(frozen=True)
class Plan:
    """What the driver has settled and every worker must agree on.

    Attributes:
        config: of the run.
        packed_path: the packed set.
        num_steps: optimizer steps of the whole run.
    """

    config: TrainConfig
    packed_path: str
    num_steps: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for Ray."""
        return {**vars(self), "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """The plan that `to_dict` wrote."""
        return cls(**{**values, "config": TrainConfig.model_validate(values["config"])})


def train_loop(plan: dict[str, Any]) -> None:
    """Trains until the plan's last step; continues from the latest registered checkpoint."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        _Worker(Plan.from_dict(plan), None).run()
        return
    with checkpoint.as_directory() as directory:
        worker = _Worker(Plan.from_dict(plan), Path(directory))
    worker.run()


class _Worker:
    """One rank: model, engine, data and reporting."""

    def __init__(self, plan: Plan, resumed: Path | None) -> None:
        self.plan, self.config = plan, plan.config
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            torch.set_num_threads(self.config.scaling.cpus_per_worker)
            torch.set_flush_denormal(True)
        self.packed = PackedSet.open(plan.packed_path)
        self.step = 0 if resumed is None else Progress.read(resumed).step
        self._load(resumed)
        self.reporter = self._make_reporter() if self.rank == 0 else None

    def run(self) -> None:
        """Trains what is left, and finishes what is reported."""
        if self.step < self.plan.num_steps:
            self._train()
        if self.reporter is not None:
            self.reporter.close()

    def _train(self) -> None:
        if self.step == 0:
            self._evaluate()
        rows_per_rank = self.config.batch.size // self.world
        batches = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=rows_per_rank, batch_format="pyarrow", prefetch_batches=2, drop_last=True
        )
        started = time.perf_counter()
        for batch in batches:
            self._train_step(batch, started)
            if self._is_due(self.config.schedule.eval_steps):
                self._evaluate()
            if self._is_due(self.config.schedule.save_steps):
                self._save()
            started = time.perf_counter()
        if self.step < self.plan.num_steps:
            raise RuntimeError(f"data ended at step {self.step} of {self.plan.num_steps}")

    def _load(self, resumed: Path | None) -> None:
        """Model, layout and engine; weights and moments from `resumed` if given."""
        config = self.config
        loaded = load_checkpoint(
            resumed or config.model.path, dtype=torch.float32, device=self.device
        )
        self.tokenizer = loaded.tokenizer
        self.contract = trained_contract(loaded.contract, config)
        if config.model.trainable_layers is not None:
            freeze_below(loaded.model, config.model.trainable_layers)
        if config.model.gradient_checkpointing:
            loaded.model.gradient_checkpointing_enable()
        rows = config.batch.size // self.world
        rows_per_micro = config.batch.rows_per_device or rows
        self.builder = StepBuilder.of(
            config,
            self.tokenizer,
            rows_per_epoch=self.packed.num_rows("train"),
            rows_per_micro=rows_per_micro,
        )
        self.spec = self.builder.spec
        module = DiffusionModule(
            loaded.model.train(),
            loss_spec(config.objective, mask_id=self.contract.mask_token_id),
            is_causal_clean=self.spec.causal_clean,
            compute_dtype=resolve_dtype(config.model.dtype, self.device),
        )
        optimizer = make_optimizer(module, config.optim)
        settings = deepspeed_config(config, world=self.world, num_micro=rows // rows_per_micro)
        self.engine = make_engine(module, optimizer, settings)
        if resumed is not None:
            restore_state(self.engine, resumed)

    def _train_step(self, batch: pa.Table, started: float) -> None:
        config, num_steps = self.config, self.plan.num_steps
        limit = corruption_limit(self.step, num_steps, config.objective.corruption_warmup)
        micros = self.builder.build(batch, limit)
        local = self.builder.counts(micros)
        total = dict(zip(COUNTS, self._sum(local).tolist(), strict=True))
        data_s = time.perf_counter() - started
        lr = learning_rate(self.step, num_steps, config.optim)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        loss_sum = torch.zeros((), dtype=torch.float64)
        for layout, noise in to_device(micros, self.device):
            sums = self.engine(layout, noise)
            # DeepSpeed averages gradients over ranks; the step's one denominator is that of all
            # ranks, so undo the average here and divide by nothing else.
            scale = self.world / total["denominator"]
            self.engine.backward(sums.loss * scale, scale_wrt_gas=False)
            loss_sum += sums.loss.detach().double().cpu()
            compute_s = time.perf_counter() - started - data_s
            grad_norm = take_step(self.engine)
        self.step += 1
        total_loss = self._sum(loss_sum[None])[0].item()
        seconds = time.perf_counter() - started
        if self.reporter is not None:
            self.reporter.step(
                {
                    "step": self.step,
                    "loss": total_loss / total["denominator"],
                    "grad_norm": grad_norm,
                    "lr": lr,
                    "tokens_per_s": total["tokens"] / seconds,
                    "target_tokens_per_s": total["targets"] / seconds,
                    "masked_fraction": total["masked"] / total["targets"],
                    "utilisation": total["tokens"]
                    / (config.batch.size * config.data.tokens_per_row),
                    "corruption_limit": limit,
                    "data_s": data_s,
                    "compute_s": compute_s,
                    "optimizer_s": seconds - data_s - compute_s,
                    "step_s": seconds,
                }
            )

    def _evaluate(self) -> None:
        """NELBO per answer token on the held-out rows, shared out over the ranks."""
        num_rows = min(self.packed.num_rows("test"), self.config.schedule.eval_rows)
        if num_rows == 0 or self.config.schedule.eval_steps == 0:
            return
        module, sums = self.engine.module, torch.zeros(2, dtype=torch.float64)
        module.eval()
        size = self.builder.rows_per_micro
        mine = list(range(self.rank, num_rows, self.world))
        for draw in range(self.config.schedule.eval_draws):
            for start in range(0, len(mine), size):
                rows = self.packed.read_rows("test", mine[start : start + size])
                with module.autocast():
                    part = nelbo_sums(
                        rows,
                        replace(self.spec, views=2),
                        module.backbone,
                        module.head,
                        mask_id=self.contract.mask_token_id,
                        draw=draw,
                        device=self.device,
                    )
                sums += torch.stack([part.nats, part.num_tokens.double()])
        module.train()
        nats, num_tokens = self._sum(sums).tolist()
        self.nelbo = nats / num_tokens
        if self.reporter is not None:
            self.reporter.evaluation({"step": self.step, "eval/nelbo": self.nelbo})

    def _save(self) -> None:
        """Registers a checkpoint with Ray Train and waits until it can be resumed from."""
        is_last = self.step == self.plan.num_steps
        name = FINAL_NAME if is_last else f"checkpoint_{self.step:08d}"
        progress = Progress(step=self.step, rows=self.step * self.config.batch.size)
        metrics = {"step": self.step, "rows": progress.rows}
        if hasattr(self, "nelbo"):
            metrics["nelbo"] = self.nelbo
        with tempfile.TemporaryDirectory(prefix="a2d-checkpoint-") as directory:
            path = Path(directory)
            save_state(self.engine, path, progress, is_writer=self.rank == 0)
            weights = whole_weights(self.engine, is_kept=self.rank == 0)
            if self.rank == 0:
                save_checkpoint(
                    path,
                    state_dict=weights,
                    model=self.engine.module.model,
                    tokenizer=self.tokenizer,
                    contract=self.contract,
                )
                (path / STATE_DIRECTORY / "config.yaml").write_text(to_yaml(self.config))
            checkpoint = Checkpoint.from_directory(path) if self.rank == 0 else None
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        # report() returns once the files are uploaded; a crash before they are registered would
        # lose them.
        ray.train.get_all_reported_checkpoints(
            consistency_mode=CheckpointConsistencyMode.COMMITTED, timeout_s=60
        )

    def _is_due(self, every: float) -> bool:
        """Whether something that happens every so many steps happens now; it does at the end."""
        return is_due(self.step, every, self.plan.num_steps)

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over ranks of a small float64 tensor."""
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def _make_reporter(self) -> RunReporter:
        storage = ray.train.get_context().get_storage()
        directory = RunDirectory(storage.storage_filesystem, storage.experiment_fs_path)
        gauges = RunGauges(self.config.run.name, self.plan.num_steps)
        return RunReporter(self.config, MetricsLog(directory, self.step), gauges)


def is_due(step: int, every: float, num_steps: int) -> bool:
    """Whether something is due after `step`: every so many steps, and after the last one.

    Args:
        step: optimizer steps done, from 1.
        every: steps between; below 1: share of the run (0.1: ten times); 0: only at the end.
        num_steps: of the whole run.
    """
    if step == num_steps:
        return True
    if every == 0:
        return False
    interval = max(1.0, every * num_steps) if every < 1 else every
    return int(step / interval) > int((step - 1) / interval)
