"""How many training steps this machine makes in a given time: measured, not guessed."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from a2d_ray.config import TrainConfig

REPEATS = 3
UNMEASURED = 1.15  # gradient reduction, logging, reading rows: seen beside what is timed here
MIN_STEPS, MAX_STEPS = 20, 2000


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

    needs = {"num_cpus": config.scaling.cpus_per_worker, "num_gpus": int(config.scaling.use_gpu)}
    time_step = ray.remote(max_calls=1, **needs)(time_worker_step)
    timings = ray.get(
        [
            time_step.remote(config.model_dump(mode="json"), str(packed_path))
            for _ in range(config.scaling.num_workers)
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
    """Times one worker's share of an optimizer step on real packed rows (median of 3)."""
    import torch

    from a2d_ray.models.checkpoint import load_checkpoint

    run = TrainConfig.model_validate(config)
    torch.set_num_threads(run.scaling.cpus_per_worker)
    torch.set_flush_denormal(True)
    device = "cuda" if run.scaling.use_gpu is True else "cpu"
    checkpoint = load_checkpoint(run.model.path, dtype=torch.float32, device=device)
    dtype = _compute_dtype(device)
    optimizer = _optimizer_of_share(checkpoint.model, run.scaling.num_workers)
    seconds = []
    for number in range(REPEATS + 1):  # the first one warms up
        layout = _read_layout(run, packed_path, number, checkpoint.tokenizer.eos_token_id)
        start = time.perf_counter()
        _forward_backward(checkpoint, layout.to(device), dtype)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": median(seconds[1:]), "dtype": str(dtype).removeprefix("torch.")}


def _compute_dtype(device: str) -> Any:
    """bfloat16 where the device multiplies it."""
    import torch

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def _optimizer_of_share(model: Any, num_workers: int) -> Any:
    """ZeRO-2: each worker updates its share of the parameters."""
    import torch

    size = sum(parameter.numel() for parameter in model.parameters()) // num_workers
    share = torch.nn.Parameter(torch.zeros(size, device=model.device))
    share.grad = torch.zeros_like(share)
    return torch.optim.AdamW([share], fused=True)


def _read_layout(run: TrainConfig, packed_path: str, number: int, eos_id: int) -> Any:
    """The layout of one worker's rows of a step."""
    from a2d_ray.data.packed import PackedSet
    from a2d_ray.diffusion.layout import LayoutSpec, build_layout

    spec = LayoutSpec(
        objective=run.objective.name,
        block_size=run.objective.block_size,
        block_grid=run.objective.block_grid,
        views=run.objective.views,
        eos_id=eos_id,
        pad_id=eos_id,
    )
    share = run.batch.rows // run.scaling.num_workers
    rows = range(number * share, (number + 1) * share)
    return build_layout(PackedSet.open(packed_path).read_rows("train", list(rows)), spec)


def _forward_backward(checkpoint: Any, layout: Any, dtype: Any) -> None:
    import torch

    from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
    from a2d_ray.diffusion.objectives import diffusion_loss

    model = checkpoint.model

    def backbone(ids: Any, position: Any, mask: Any) -> Any:
        outputs = model.model(input_ids=ids, position_ids=position, attention_mask=mask)
        return outputs.last_hidden_state

    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        noise = draw_noise(layout, NoiseSpec(), seed=0, epoch=0)
        mask_id = checkpoint.contract.mask_token_id
        sums = diffusion_loss(layout, noise, backbone, model.lm_head.weight, mask_id=mask_id)
    sums.loss.backward()
    model.zero_grad()
