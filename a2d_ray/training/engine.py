"""DeepSpeed around the module: ZeRO 0 to 3 on the process group that Ray Train has set up."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.models.parts import head_parameters
from a2d_ray.training.metrics import StepTimes

# Gradients travel while the backward goes on, in buckets that are soon full (DeepSpeed's own: after
# it, and 5e8 elements).
_OVERLAPPED = {"overlap_comm": True, "reduce_bucket_size": 100_000_000}


def deepspeed_config(
    config: TrainConfig, *, world: int, num_micro: int, device_type: str = "cpu"
) -> dict[str, Any]:
    """DeepSpeed's own configuration: what we derive, and the user's `deepspeed:` section on top.

    Args:
        config: the resolved training configuration.
        world: ranks.
        num_micro: micro-batches of one rank in one step.
        device_type: where it trains; GPUs get defaults that hide the network behind the backward.
    """
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch.rows // world // num_micro,
        "gradient_accumulation_steps": num_micro,
        "gradient_clipping": config.optim.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a step
    }
    settings = derived | config.deepspeed
    zero = settings.get("zero_optimization", {})
    if world == 1 and zero.get("stage"):
        # One rank has nothing to partition: the copies into flat buffers are saved. (Stage 3 would
        # even fail: weights stay "in flight".) Options such as offloading need their stage.
        is_plain = set(zero) == {"stage"}
        settings["zero_optimization"] = zero | {"stage": 0 if is_plain else min(zero["stage"], 2)}
    elif device_type == "cuda" and zero.get("stage") == 2:
        settings["zero_optimization"] = _OVERLAPPED | zero
    return settings


def make_engine(module: Any, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """A DeepSpeed engine for a module around a model, whose head its loss calls."""
    if deepspeed.get_accelerator().device_name() == "cpu":
        # Its shared-memory all-reduce would be compiled at first use (35 s, a C++ compiler); gloo
        # does. Other devices never ask for it, and reading this table probes every op.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if engine_stage(engine) == 0 and dist.get_world_size() == 1:
        engine.enable_backward_allreduce = False  # it would flatten every gradient for nobody
    if is_partitioned(engine):
        for parameter in head_parameters(module.model):
            _keep_whole(engine, parameter)
    return engine


def take_step(engine: Any) -> Tensor:
    """Steps after a micro-batch's backward; returns the gradient's norm before it was clipped.

    Before the last micro-batch of a step DeepSpeed only counts, and the norm is 0. The norm is a
    scalar where the model is: nothing of ours waits for it.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return torch.zeros(())
    # ZeRO 1 to 3 know the norm after the step; plain DDP does not keep it.
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if engine_stage(engine) == 0 else None
    engine.step()
    return torch.as_tensor(engine.get_global_grad_norm() if norm is None else norm)


def forward_backward(
    engine: Any,
    micros: Iterable[tuple[Any, ...]],
    *,
    scale: float,
    times: StepTimes,
    note: Callable[[Any], None],
) -> tuple[Tensor, Tensor]:
    """A step: summed loss (float64) and gradient norm, scalars where the model is.

    The host waits for nothing between micro-batches.

    Args:
        engine: DeepSpeed's engine around the module.
        micros: arguments of the module's forward, where the model is.
        scale: of the loss, for gradients.
        times: of the step.
        note: gets what the module says of each micro-batch.
    """
    total: Any = 0
    norm = torch.zeros(())
    for parts in micros:
        with times.forward():
            sums = engine(*parts)
        engine.backward(sums.loss * scale, scale_wrt_gas=False)
        total = total + sums.loss.detach().double()
        note(sums)
        times.computed()
        norm = take_step(engine)
    return total, norm


def engine_stage(engine: Any) -> int:
    """The ZeRO stage of an engine."""
    return int(engine.zero_optimization_stage())


def is_partitioned(engine: Any) -> bool:
    """Whether the weights themselves are spread over the ranks (ZeRO-3)."""
    return engine_stage(engine) == 3


def _keep_whole(engine: Any, weight: Tensor) -> None:
    """Keeps one weight gathered under ZeRO-3, its optimizer state still partitioned.

    The loss calls the head in chunks, without the hooks of its modules, and tied embeddings share
    it, so the hooks that release weights after a module's forward would take it away.
    """
    weight.ds_persist = weight.is_external_param = True  # type: ignore[attr-defined]
    engine.optimizer.persistent_parameters.append(weight)


def whole_weights(engine: Any, *, is_kept: bool) -> dict[str, Tensor]:
    """The model's weights by the plain model's names, on the CPU. Collective under ZeRO-3.

    Args:
        engine: DeepSpeed's engine around the module.
        is_kept: whether this rank wants them; others get an empty mapping.
    """
    model = engine.module.model
    if not is_partitioned(engine):
        return dict(model.state_dict()) if is_kept else {}
    weights = dict(model.named_buffers()) if is_kept else {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with gathered([parameter]):
            if is_kept:
                weights[name] = parameter.detach().cpu().clone()
    return {name: weights[name] for name in model.state_dict()} if is_kept else {}


@contextmanager
def gathered(parameters: list[Tensor]) -> Iterator[None]:
    """Within it, parameters that ZeRO-3 partitions are whole."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        yield
