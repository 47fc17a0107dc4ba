"""Weak scaling on one machine: CPU time per token, and bytes on the wire, of 1, 2, 3 ... workers.

    unshare -n sh -c 'ip link set lo up; python -m tests.cluster.weak_scaling 1,2,3 2 1'

Arguments: the numbers of workers, the ZeRO stage, micro-batches of a step. Every worker is a
process of one thread with the same number of tokens, joined by gloo over the loopback device, whose
counters of bytes are read: so run it in a network namespace of its own. Prints one line of JSON per
number of workers.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

STEPS, ROWS, DOCUMENTS = 4, 2, 8
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab_size": 4096}


def measure(world: int, zero_stage: int, num_micro: int) -> dict[str, Any]:
    """Figures of one number of workers: means over the steps behind the first."""
    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(_rank, (world, zero_stage, num_micro, directory), nprocs=world)
        ranks = [json.loads((Path(directory) / f"{r}.json").read_text()) for r in range(world)]
    parameters, tokens = ranks[0]["parameters"], sum(rank["tokens"] for rank in ranks)
    from a2d_ray.planning.estimate import network_bytes

    theory = world * network_bytes(
        parameters, zero_stage=zero_stage, num_workers=world, num_micro=num_micro
    )
    sent = max(rank["wire_bytes"] for rank in ranks)
    return {
        "workers": world,
        "micro_batches": num_micro,
        "parameters": parameters,
        "tokens_per_step": tokens,
        "cpu_us_per_token": round(1e6 * sum(rank["cpu_s"] for rank in ranks) / tokens, 1),
        "compute_cpu_us_per_token": round(1e6 * sum(r["compute_s"] for r in ranks) / tokens, 1),
        "wall_s_per_step": round(max(rank["wall_s"] for rank in ranks), 3),
        "wire_mb_per_step": round(sent / 1e6, 3),
        "theory_mb_per_step": round(theory / 1e6, 3),
        "rss_mb": [round(rank["rss_mb"]) for rank in ranks],
    }


def _rank(rank: int, world: int, zero_stage: int, num_micro: int, directory: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        DS_ACCELERATOR="cpu", LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world)
    )
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    engine, layout, noise = _build(rank, zero_stage, num_micro)
    compute_s = 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first one makes buffers and connections
            dist.barrier()
            cpu, wall, wire, compute_s = time.process_time(), time.monotonic(), _loopback(), 0.0
        for _ in range(num_micro):
            start = time.process_time()
            sums = engine(layout, noise)
            compute_s += time.process_time() - start
            engine.backward(sums.loss / float(layout.num_targets), scale_wrt_gas=False)
            engine.step()
    dist.barrier()
    figures = {
        "parameters": sum(p.numel() for p in engine.module.parameters()),
        "tokens": num_micro * int((layout.doc_RT >= 0).sum()),
        "cpu_s": (time.process_time() - cpu) / STEPS,
        "compute_s": compute_s / STEPS,
        "wall_s": (time.monotonic() - wall) / STEPS,
        "wire_bytes": (_loopback() - wire) / STEPS,
        "rss_mb": _rss_mb(),
    }
    (Path(directory) / f"{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def _build(rank: int, zero_stage: int, num_micro: int) -> tuple[Any, Any, Any]:
    """Engine, and the rank's layout and noise: as many tokens on every rank."""
    from a2d_ray.config import OptimSection
    from a2d_ray.diffusion.layout import LayoutSpec, build_layout
    from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
    from a2d_ray.training.engine import make_engine
    from a2d_ray.training.optim import make_optimizer
    from tests.rows import packed_row
    from tests.tiny import tiny_a2d_model
    from tests.training.modules import module_of

    module = module_of(tiny_a2d_model("qwen3", **SIZES).train())
    documents = [(DOCUMENTS * rank + d, [(64, False), (64, True)], True) for d in range(DOCUMENTS)]
    rows = [packed_row(documents, seed=rank + 100 * r) for r in range(ROWS)]
    layout = build_layout(rows, LayoutSpec(objective="bd3lm", block_size=16, eos_id=2))
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(ROWS, dtype=torch.int64))
    settings = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": num_micro,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": zero_stage},
    }
    return make_engine(module, make_optimizer(module, OptimSection()), settings), layout, noise


def _loopback() -> int:
    """Bytes that the loopback device has sent."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    raise RuntimeError("there is no loopback device")


def _rss_mb() -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    stage, micros = map(int, sys.argv[2:])
    for workers in map(int, sys.argv[1].split(",")):
        print(json.dumps(measure(workers, stage, micros)), flush=True)
