"""Case ``ray_train`` of suite ``training``: what Ray Train and DeepSpeed add to a step.

SmolLM2-135M with all layers, one worker, the same packed rows as the bare loop in one process.
Wall time, as Ray's own processes work beside the training: bare, Ray, bare.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from a2d_ray.config import BenchmarkConfig, TrainConfig
from benchmarks.bare_training import BareLoop
from benchmarks.harness import Case
from benchmarks.learning import prepare_runs

WARMUP = 2


def ray_train(config: BenchmarkConfig) -> Case:
    """Median seconds per step."""
    from a2d_ray.runs.cluster import running_ray
    from a2d_ray.training.trainer import build_trainer

    steps = 6 if config.quick else 24
    with tempfile.TemporaryDirectory() as root:
        values, packed_path = prepare_runs(Path(root), ["default"])["default"]
        schedule = {"max_steps": steps, "eval_steps": 0, "save_steps": 0, "eval_samples": 0}
        scaling = {"num_workers": 1, "cpus_per_worker": config.threads, "use_gpu": False}
        run = TrainConfig.model_validate(values | {"schedule": schedule, "scaling": scaling})
        bare = _bare_steps(run, packed_path, steps)
        with running_ray(4, is_quiet=True):
            build_trainer(run).fit()
        log = Path(run.run.storage_path) / run.run.name / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        ours = [line["step_s"] for line in lines if "step_s" in line][WARMUP:]
        again = _bare_steps(run, packed_path, steps)
    return Case(
        name="ray_train",
        ours=statistics.median(ours),
        baseline=statistics.median(bare + again),
        unit="wall seconds per optimizer step, Ray Train with DeepSpeed against a bare loop",
        facts={
            "bare_before": round(statistics.median(bare), 4),
            "bare_after": round(statistics.median(again), 4),
            "steps": len(ours),
        },
    )


def _bare_steps(run: TrainConfig, packed_path: str, steps: int) -> list[float]:
    torch.set_num_threads(run.scaling.cpus_per_worker)
    torch.set_flush_denormal(True)
    loop = BareLoop.of(run, packed_path, run.run.seed)
    seconds = []
    for number in range(steps):
        started = time.perf_counter()
        loop.step(number, number, steps)
        seconds.append(time.perf_counter() - started)
    return seconds[WARMUP:]
