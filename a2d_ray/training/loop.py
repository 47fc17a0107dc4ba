"""The training loop of one Ray Train worker."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import ray.util
import torch
from torch import Tensor

from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.models.checkpoint import Checkpoint
from a2d_ray.models.tokenizers import with_template_options
from a2d_ray.runs.storage import WORKERS_FILE, RunDirectory
from a2d_ray.terminal.notices import mark_warnings
from a2d_ray.training.assembly import build_module, load_model
from a2d_ray.training.batches import StepBuilder, pinned, rows_per_micro, to_device
from a2d_ray.training.checkpoints import CheckpointWriter
from a2d_ray.training.engine import deepspeed_config, forward_backward, make_engine
from a2d_ray.training.evaluation import Evaluator
from a2d_ray.training.feed import ReadyStep, StepFeed
from a2d_ray.training.gauges import RunGauges
from a2d_ray.training.metrics import StepCounter, StepTimes, rank_figures
from a2d_ray.training.objective import trained_contract
from a2d_ray.training.optim import (
    corruption_limit,
    learning_rate,
    make_optimizer,
    open_block_sizes,
)
from a2d_ray.training.plan import TrainingPlan, is_due
from a2d_ray.training.ranks import Ranks
from a2d_ray.training.reporting import MetricsLog, RunReporter
from a2d_ray.training.samples import HeldOutSample
from a2d_ray.training.state import RunProgress, restore_state
from a2d_ray.training.stopping import StopWatch
from a2d_ray.training.toolchain import check_toolchain


def run_train_worker(plan: dict[str, Any]) -> None:
    """Trains until the plan's last step; continues from the latest registered checkpoint."""
    run_worker(Worker, plan)


def run_worker(worker_class: type["Worker"], plan: dict[str, Any]) -> None:
    """Runs one rank of a plan, from the latest registered checkpoint."""
    mark_warnings()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        worker_class(TrainingPlan.from_dict(plan), None).run()
        return
    with checkpoint.as_directory() as directory:
        worker = worker_class(TrainingPlan.from_dict(plan), Path(directory))
    worker.run()


class Worker:
    """One rank: model, engine, data and reporting.

    What a step's rows are, what is learned of them and what is evaluated lies in methods that
    `a2d_ray.rl.loop` replaces.

    Attributes:
        looks_ahead: whether the rows of a step are there before the step before has ended.
    """

    looks_ahead = True

    def __init__(self, plan: TrainingPlan, resumed: Path | None) -> None:
        self.plan = plan
        self.config = plan.config
        context = ray.train.get_context()
        self.ranks = Ranks(
            context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
        )
        if self.ranks.device.type == "cuda":
            check_toolchain()
        if self.ranks.device.type == "cpu":
            torch.set_num_threads(self.config.scaling.cpus_per_worker)
            torch.set_flush_denormal(True)
        storage = context.get_storage()
        directory = self.directory = RunDirectory(
            storage.storage_filesystem, storage.experiment_fs_path
        )
        self.rows_per_epoch = self.open_data()
        self.step = self.saved_step = 0
        self._last_own_s = 0.0
        if resumed is not None:
            self.step = self.saved_step = RunProgress.read(resumed).step
        self._load(resumed)
        self.writer = CheckpointWriter(
            plan, self.ranks, directory, self.contract, self.tokenizer, self.adapted
        )
        self.reporter = self.watch = None
        nodes = self.ranks.texts(ray.util.get_node_ip_address())
        if self.ranks.is_first:
            directory.write(WORKERS_FILE, json.dumps(nodes).encode())
            gauges = RunGauges(self.config.run.name, plan.num_steps)
            self.reporter = RunReporter(self.config, MetricsLog(directory, self.step), gauges)
            self.watch = StopWatch(directory, plan.deadline)

    def run(self) -> None:
        """Trains what is left, and finishes what is reported."""
        if self.step < self.plan.num_steps:
            self._train()
        if self.reporter is not None:
            self.reporter.close()

    def _train(self) -> None:
        if self.step == 0:
            self._evaluate()
        schedule = self.config.schedule
        num_steps = self.plan.num_steps
        started = time.perf_counter()
        totals: Tensor | None = None
        last_s = 0.0
        rows = self.batches()
        with StepFeed(rows, self.make_ready, self.step, looks_ahead=self.looks_ahead) as feed:
            while (ready := feed.take()) is not None:
                if totals is None:
                    totals = self.ranks.sum(ready.counts)
                times = StepTimes(started, self.ranks.device)
                totals, is_over = self._train_step(ready, totals, feed, times, last_s)
                last_s = times.step_s
                figures = {}
                if is_due(self.step, schedule.eval_steps, num_steps):
                    figures = self._evaluate()
                    is_over = self.ranks.any(self._is_over(last_s))
                if is_over or is_due(self.step, schedule.save_steps, num_steps):
                    self._save(figures)
                if is_over:
                    return
                started = time.perf_counter()
        if self.step < num_steps:
            raise RuntimeError(f"data ended at step {self.step} of {num_steps}")

    def _is_over(self, step_s: float) -> bool:
        """Whether this rank wants the run to stop now."""
        return self.watch is not None and self.watch.is_over(step_s)

    def open_data(self) -> int:
        """Opens what is trained on; returns its rows per epoch."""
        self.packed = PackedSet.open(self.plan.packed_path)
        return self.packed.num_rows("train")

    def batches(self) -> Iterator[Any]:
        """This rank's rows of each step that is left."""
        yield from ray.train.get_dataset_shard("train").iter_batches(
            batch_size=self.config.batch.rows // self.ranks.world,
            batch_format="pyarrow",
            prefetch_batches=2,
            drop_last=True,
        )

    def make_module(self, loaded: Checkpoint) -> Any:
        """The module whose forward is the loss of a micro-batch."""
        return build_module(loaded, self.config, self.ranks.device)

    def make_ready(self, batch: Any, step: int) -> ReadyStep:
        """A step from its rows; a function of both, which another thread may call."""
        warmup = self.config.objective.corruption_warmup
        limit = corruption_limit(step, self.plan.num_steps, warmup)
        micros = self.lay_out(batch, step, limit)
        counts = self.counter.mine(micros)
        if self.ranks.device.type == "cuda":
            micros = pinned(micros)
        return ReadyStep(micros=micros, counts=counts, limit=limit)

    def lay_out(self, batch: Any, step: int, limit: float) -> list[tuple[Any, ...]]:
        """Micro-batches of a batch: the arguments of the module's forward, on the host.

        Args:
            batch: of `batches`.
            step: optimizer steps before.
            limit: largest corrupted share of a block.
        """
        objective = self.config.objective
        sizes = open_block_sizes(
            step, self.plan.num_steps, objective.block_sizes, objective.block_growth
        )
        micros = self.builder.build(batch, limit, sizes)
        return [(layout, noise, self.module.plan(layout, noise)) for layout, noise in micros]

    def note(self, sums: Any) -> None:
        """Takes what the module said of a micro-batch beside its loss."""

    def more_figures(self, counts: dict[str, float]) -> dict[str, float]:
        """Figures of the step that was taken, beside those that all runs have. Collective."""
        return {}

    def evaluate(self) -> tuple[dict[str, float], list[HeldOutSample]]:
        """Held-out figures and, on rank 0, samples; no figures: nothing is held out. Collective."""
        figures = self.evaluator.evaluate(self.engine)
        return figures, self.evaluator.samples(self.engine) if figures else []

    def _load(self, resumed: Path | None) -> None:
        """Model, layout and engine; weights and moments from `resumed` if given."""
        config = self.config
        ranks = self.ranks
        loaded, self.adapted = load_model(config, ranks.device, resumed)
        self.tokenizer = with_template_options(loaded.tokenizer, config.data.template_options)
        self.contract = trained_contract(loaded.contract, config)
        rows = config.batch.rows // ranks.world
        num_rows = rows_per_micro(config, rows, ranks.device.type)
        self.builder = StepBuilder.of(
            config,
            self.tokenizer,
            rows_per_epoch=self.rows_per_epoch,
            rows_per_micro=num_rows,
        )
        module = self.module = self.make_module(loaded)
        self.counter = StepCounter.of(config, self.builder, ranks, loaded.model)
        settings = deepspeed_config(
            config,
            world=ranks.world,
            num_micro=rows // num_rows,
            device_type=ranks.device.type,
        )
        self.engine = make_engine(module, make_optimizer(module, config.optim), settings)
        if resumed is not None:
            restore_state(self.engine, resumed)

    @property
    def evaluator(self) -> Evaluator:
        """Evaluates held-out packed rows."""
        return Evaluator(
            config=self.config,
            packed=self.packed,
            spec=self.builder.spec,
            contract=self.contract,
            tokenizer=self.tokenizer,
            adapted=self.adapted,
            rows_per_micro=self.builder.rows_per_micro,
            ranks=self.ranks,
        )

    def _train_step(
        self,
        ready: ReadyStep,
        totals: Tensor,
        feed: StepFeed,
        times: StepTimes,
        last_s: float,
    ) -> tuple[Tensor | None, bool]:
        """One optimizer step; returns the next step's counts, and whether the run is over.

        The ranks exchange once, and a device is waited for once, by that: it carries the loss, the
        norm, each rank's seconds, whether to stop, and what the next step holds.

        Args:
            ready: the step.
            totals: its counts over all ranks.
            feed: of the next step.
            times: of this one.
            last_s: seconds of the step before.
        """
        if self.step + 1 < self.plan.num_steps:
            feed.begin()
        counts = self.counter.named(totals)
        lr = learning_rate(self.step, self.plan.num_steps, self.config.optim)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed averages gradients over ranks; the step's one denominator is that of all ranks,
        # so undo the average here and divide by nothing else.
        loss_sum, grad_norm = forward_backward(
            self.engine,
            to_device(ready.micros, self.ranks.device),
            scale=self.ranks.world / counts["denominator"],
            times=times,
            note=self.note,
        )
        ahead = feed.ahead()
        times.waited(*feed.spent())
        is_cuda = self.ranks.device.type == "cuda"  # there a step's own time is known when it ends
        own_s = self._last_own_s if is_cuda else times.own_s
        wants_end = self._is_over(max(last_s, times.elapsed_s()))
        found = self.ranks.sum_parts(
            [
                loss_sum,
                grad_norm if self.ranks.is_first else torch.zeros(()),
                torch.tensor(float(wants_end)),
                self.ranks.each(own_s),
                torch.zeros(0) if ahead is None else ahead.counts,
            ]
        )
        self.step += 1
        self._last_own_s = times.finish().own_s
        line = {
            "step": self.step,
            "loss": found[0].item() / counts["denominator"],
            "grad_norm": found[1].item(),
            "lr": lr,
        }
        line |= self.counter.figures(counts, times) | {"corruption_limit": ready.limit}
        line |= rank_figures(found[3]) | self.more_figures(counts)
        if self.reporter is not None:
            self.reporter.step(line)
        return None if ahead is None else found[4], bool(found[2].item())

    def _evaluate(self) -> dict[str, float]:
        """Reports held-out figures and samples; returns the figures."""
        figures, samples = self.evaluate()
        if figures and self.reporter is not None:
            self.reporter.evaluation({"step": self.step, **figures}, samples)
        return figures

    def _save(self, figures: dict[str, float]) -> None:
        started = time.perf_counter()
        problem = self.writer.save(self.engine, self.step, figures)
        if self.watch is not None:
            self.watch.save_s = time.perf_counter() - started
        if problem is None:
            self.saved_step = self.step
        elif self.reporter is not None:
            good = f"step {self.saved_step}" if self.saved_step else "none"
            self.reporter.warn(
                f"step {self.step} could not be saved, training goes on (last good checkpoint: "
                f"{good}): {problem}"
            )
