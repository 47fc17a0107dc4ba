"""How many training steps this machine makes in a given time: measured, not guessed."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from a2d_ray.config import TrainConfig

REPEATS = 1
UNMEASURED = 1.45  # gradient reduction and all-gather, reading rows: not part of what is timed
MIN_STEPS = 20
MAX_STEPS = 2000


def choose_steps(config: TrainConfig, packed_path: Path, minutes: float) -> dict[str, Any]:
    """Steps that fit into `minutes`, after timing a few on every worker's core at once.

    Needs a running Ray.

    Args:
        config: the training run; its number of steps is not read.
        packed_path: the packed set that it trains on.
        minutes: time to aim for.

    Returns:
        ``steps``, the estimated ``seconds_per_step``, and the ``dtype`` that was timed.
    """
    import ray

    on_worker = ray.remote(
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=int(config.scaling.use_gpu is True),
        max_calls=1,
    )
    time_step = on_worker(time_worker_step)
    timings = ray.get(
        [
            time_step.remote(config.model_dump(mode="json"), str(packed_path))
            for _ in range(config.scaling.world_sizes[-1])
        ]
    )
    seconds = UNMEASURED * max(timing["seconds"] for timing in timings)
    return {
        "steps": steps_within(minutes, seconds),
        "seconds_per_step": seconds,
        "dtype": timings[0]["dtype"],
    }


def steps_within(minutes: float, seconds_per_step: float) -> int:
    """Whole steps, 20 to 2,000, that fit into `minutes`."""
    return min(max(int(60 * minutes / seconds_per_step), MIN_STEPS), MAX_STEPS)


def time_worker_step(config: dict[str, Any], packed_path: str) -> dict[str, Any]:
    """Times one worker's share of a second optimizer step on real packed rows."""
    import torch

    run = TrainConfig.model_validate(config)
    torch.set_num_threads(run.scaling.cpus_per_worker)
    torch.set_flush_denormal(True)
    module, builder = _build(run, packed_path)
    optimizer = _optimizer_of_share(module, run.scaling.world_sizes[-1])
    seconds = []
    for number in range(REPEATS + 1):  # the first one warms up
        micros = builder.build(_read(run, packed_path, number), max_fraction=1.0)
        start = time.perf_counter()
        _forward_backward(module, micros)
        optimizer.step()
        if module.head.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": median(seconds[1:]),
        "dtype": str(module.compute_dtype).removeprefix("torch."),
    }


def _build(run: TrainConfig, packed_path: str) -> tuple[Any, Any]:
    """The trained module and what builds its micro-batches, as a worker has them."""
    import torch

    from a2d_ray.data.packing.packed import PackedSet
    from a2d_ray.models.checkpoint import load_checkpoint
    from a2d_ray.training.assembly import build_module
    from a2d_ray.training.batches import StepBuilder

    device = torch.device("cuda" if run.scaling.use_gpu is True else "cpu")
    checkpoint = load_checkpoint(run.model.path, dtype=torch.float32, device=device)
    module = build_module(checkpoint, run, device)
    builder = StepBuilder.of(
        run,
        checkpoint.tokenizer,
        rows_per_epoch=PackedSet.open(packed_path).num_rows("train"),
        rows_per_micro=run.batch.rows_per_device or run.batch.rows // run.scaling.world_sizes[-1],
    )
    return module, builder


def _read(run: TrainConfig, packed_path: str, number: int) -> Any:
    """One worker's packed rows of a step, with their positions."""
    import numpy as np
    import pyarrow as pa

    from a2d_ray.data.packing.packed import PackedSet

    packed = PackedSet.open(packed_path)
    share = run.batch.rows // run.scaling.world_sizes[-1]
    positions = np.arange(number * share, (number + 1) * share)
    table = packed.table("train", positions % packed.num_rows("train"))
    return table.append_column("position", pa.array(positions))


def _optimizer_of_share(module: Any, num_workers: int) -> Any:
    """ZeRO-2: each worker updates its share of the parameters."""
    import torch

    size = sum(p.numel() for p in module.parameters() if p.requires_grad) // num_workers
    share = torch.nn.Parameter(torch.zeros(size, device=module.head.device))
    share.grad = torch.zeros_like(share)
    return torch.optim.AdamW([share], fused=True)


def _forward_backward(module: Any, micros: Any) -> None:
    from a2d_ray.training.batches import to_device

    for layout, noise in to_device(micros, module.head.device):
        module(layout, noise).loss.backward()
    module.zero_grad()
