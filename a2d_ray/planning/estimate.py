"""What a run will take: memory per worker, tokens/s, hours, price, bytes on the network.

    a step's seconds = one GPU's work (`speed.step_seconds`) + bytes on the slowest link / its
    bandwidth - what of them hides behind the backward pass

With `cluster.mfu` the first is FLOPs / (workers x peak x MFU), and nothing hides. Every document
has the mean length. docs/scaling.md compares it with what was measured.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.config import ClusterSection, PlanConfig, TrainConfig, WorkloadSection
from a2d_ray.data.packing.packed import MANIFEST
from a2d_ray.planning.devices import Device, find_device
from a2d_ray.planning.flops import LayoutCost, layout_cost, padded_cost, train_flops
from a2d_ray.planning.memory import FP32, Memory, worker_memory
from a2d_ray.planning.sizes import ModelSizes, find_sizes
from a2d_ray.planning.speed import StepSeconds, step_seconds

STAGES = (0, 1, 2, 3)
_NEEDED = ("peak_tflops", "memory_gib", "link_gbyte_s", "price")  # of a device of one's own
UNKNOWN_MFU = 0.25  # of a device whose memory's bandwidth nobody told
BACKWARD = 0.6  # of a step's computing, behind which gradients may travel


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        model, device, num_workers, num_nodes: who computes.
        parameters, trained_parameters: of the model.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3.
        steps: optimizer steps.
        step_tokens: laid-out tokens of a step, over all workers and streams.
        step_targets: target tokens of a step, over all views.
        step_flops: of a step, over all workers.
        compute_s, network_s: seconds of a step that compute, and in which the network is busy.
        hidden_s: of `network_s`, behind the backward pass.
        seconds: what `compute_s` is made of; None: `cluster.mfu` was given.
        mfu: model FLOPs of a step over what the devices could do in its seconds.
        network_bytes: that each worker sends in a step.
        hours: of the whole run, without evaluations and checkpoints.
        price: US dollars for all devices over these hours.
        memory: per ZeRO stage.
        memory_gib: of the device.
        padded_ratio: cost of the padded layout of the public recipe, per target, over ours.
    """

    model: str
    device: str
    num_workers: int
    num_nodes: int
    parameters: int
    trained_parameters: int
    zero_stage: int
    steps: int
    step_tokens: float
    step_targets: float
    step_flops: float
    compute_s: float
    network_s: float
    hidden_s: float
    seconds: StepSeconds | None
    mfu: float
    network_bytes: float
    hours: float
    price: float
    memory: dict[int, Memory]
    memory_gib: float
    padded_ratio: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.network_s - self.hidden_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values; bytes per worker by ZeRO stage under ``memory``."""
        memory = {f"zero{k}": {**vars(m), "total": m.total} for k, m in self.memory.items()}
        return {
            **vars(self),
            "memory": memory,
            "seconds": None if self.seconds is None else vars(self.seconds),
            "step_s": self.step_s,
            "tokens_per_s": self.step_tokens / self.step_s,
            "target_tokens_per_s": self.step_targets / self.step_s,
        }


def plan_run(config: PlanConfig) -> RunEstimate:
    """The plan of a run.

    Raises:
        ValueError: an unknown model or device, or a packed set that is not there.
    """
    train = config.train
    cluster = config.cluster
    sizes = find_sizes(train.model.path)
    device = _device(cluster)
    load = _with_manifest(config.workload)
    cost = _mean_cost(load, train)
    row_documents = load.utilisation * train.data.tokens_per_row / cost.tokens
    if not train.data.packing:
        row_documents = 1.0
    step_documents = row_documents * train.batch.rows
    steps = train.schedule.max_steps or max(
        1, math.floor(load.documents * train.schedule.epochs / step_documents)
    )
    workers = train.scaling.world_sizes[-1]
    flops = step_documents * train_flops(cost, sizes, train.model)
    micro_rows = train.batch.rows_per_device or train.batch.rows // workers
    stage = zero_stage(train)
    num_micro = train.batch.rows // workers // micro_rows
    trained = sizes.trained_parameters(train.model)
    sent = network_bytes(trained, zero_stage=stage, num_workers=workers, num_micro=num_micro)
    network_s = sent / _slowest_link(cluster, device, workers)
    peak = workers * device.peak_tflops * 1e12
    mfu = _given_mfu(cluster, device)
    share = _scaled(cost, step_documents / workers)
    seconds = None if mfu is not None else _seconds(share, sizes, train, device, num_micro)
    compute_s = seconds.total if seconds is not None else flops / (peak * (mfu or UNKNOWN_MFU))
    hidden_s = 0.0 if seconds is None else _hidden(train, compute_s, network_s, num_micro)
    step_s = compute_s + network_s - hidden_s
    hours = steps * step_s / 3600
    return RunEstimate(
        model=train.model.path,
        device=cluster.device,
        num_workers=workers,
        num_nodes=math.ceil(workers / cluster.devices_per_node),
        parameters=sizes.parameters,
        trained_parameters=trained,
        zero_stage=stage,
        steps=steps,
        step_tokens=step_documents * cost.tokens,
        step_targets=step_documents * cost.targets,
        step_flops=flops,
        compute_s=compute_s,
        network_s=network_s,
        hidden_s=hidden_s,
        seconds=seconds,
        mfu=flops / (peak * step_s),
        network_bytes=sent,
        hours=hours,
        price=hours * workers * device.price,
        memory={s: _memory(sizes, train, s, micro_rows) for s in STAGES},
        memory_gib=device.memory_gib,
        padded_ratio=_padded_ratio(cost, sizes, train),
    )


def zero_stage(train: TrainConfig) -> int:
    """ZeRO stage of a run."""
    return int(train.deepspeed.get("zero_optimization", {}).get("stage", 0))


def network_bytes(
    trained_parameters: int, *, zero_stage: int, num_workers: int, num_micro: int = 1
) -> float:
    """Bytes that each worker sends in a step, with ring collectives over fp32.

    A ring sends (W - 1) / W of a tensor for a reduce-scatter or an all-gather, twice that for an
    all-reduce. Stage 0 all-reduces gradients; stages 1 and 2 do too, since DeepSpeed reduces
    buckets of many owners whole (`use_multi_rank_bucket_allreduce`), stage 2 for every micro-batch,
    and gather the new weights; stage 3 gathers weights for every forward and backward and
    reduce-scatters. Stage 2 was measured; the paper's would send one pass less.

    Source: ZeRO, arXiv 1910.02054, section 7; docs/scaling.md.
    """
    once = FP32 * trained_parameters * (num_workers - 1) / num_workers
    passes = {0: 2, 1: 2 + 1, 2: 2 * num_micro + 1, 3: 3 * num_micro}
    return once * passes[zero_stage]


def _seconds(
    share: LayoutCost, sizes: ModelSizes, train: TrainConfig, device: Device, num_micro: int
) -> StepSeconds:
    """What one GPU's share of a step is made of."""
    optimizer_share = 1 / train.scaling.world_sizes[-1] if zero_stage(train) else 1.0
    return step_seconds(
        share, sizes, train.model, device, num_micro=num_micro, optimizer_share=optimizer_share
    )


def _given_mfu(cluster: ClusterSection, device: Device) -> float | None:
    """The MFU that replaces the model of a step; None: that is used."""
    is_known = device.memory_tbyte_s is not None
    return UNKNOWN_MFU if cluster.mfu is None and not is_known else cluster.mfu


def _scaled(cost: LayoutCost, number: float) -> LayoutCost:
    """The cost of so many documents."""
    return LayoutCost(**{key: number * value for key, value in vars(cost).items()})


def _hidden(train: TrainConfig, compute_s: float, network_s: float, num_micro: int) -> float:
    """Seconds of the network behind backward passes, where gradients travel while they run."""
    zero = train.deepspeed.get("zero_optimization", {})
    if zero_stage(train) != 2 or not zero.get("overlap_comm", True):
        return 0.0
    passes = 2 * num_micro  # and one that gathers weights, which waits
    return min(network_s * passes / (passes + 1), BACKWARD * compute_s)


def _device(cluster: ClusterSection) -> Device:
    """The named device, with the figures that the user knows better."""
    own = {
        key: value
        for key in (*_NEEDED, "memory_tbyte_s")
        if (value := getattr(cluster, key)) is not None
    }
    if own.keys() >= set(_NEEDED):
        return Device(**own, rented_as="cluster.price")
    return Device(**{**vars(find_device(cluster.device)), **own})


def _slowest_link(cluster: ClusterSection, device: Device, workers: int) -> float:
    """Bytes/s of a ring over all workers: its edges between nodes decide, if there are any."""
    inside = device.link_gbyte_s * 1e9
    if workers <= cluster.devices_per_node:
        return inside
    return min(inside, cluster.node_gbit_s * 1e9 / 8)


def _with_manifest(load: WorkloadSection) -> WorkloadSection:
    """The workload, its counts from a packed set where there is one."""
    if load.packed is None:
        return load
    path = Path(load.packed).expanduser() / MANIFEST
    if not path.is_file():
        raise ValueError(f"workload.packed={load.packed} is no packed set: it has no {MANIFEST}")
    split = json.loads(path.read_text())["splits"]["train"]
    sources = split["sources"].values()
    documents, tokens, targets = (
        sum(source[key] for source in sources) for key in ("documents", "tokens", "targets")
    )
    return load.model_copy(
        update={
            "documents": documents,
            "tokens_per_document": tokens / documents,
            "target_fraction": targets / tokens,
            "utilisation": split["utilisation"],
        }
    )


def _mean_cost(load: WorkloadSection, train: TrainConfig) -> LayoutCost:
    length = min(load.tokens_per_document, train.data.max_length)
    answer = max(1, round(length * load.target_fraction))
    return layout_cost(round(length) - answer, answer, train.objective)


def _padded_ratio(cost: LayoutCost, sizes: ModelSizes, train: TrainConfig) -> float:
    """Padded rows of `data.max_length`, one view, over our layout: FLOPs per target and view."""
    targets = cost.targets / train.objective.views
    padded = padded_cost(train.data.max_length, round(targets), train.objective)
    theirs = train_flops(padded, sizes, train.model) / padded.targets
    return theirs / (train_flops(cost, sizes, train.model) / cost.targets)


def _memory(sizes: ModelSizes, train: TrainConfig, stage: int, micro_rows: int) -> Memory:
    return worker_memory(
        sizes,
        zero_stage=stage,
        num_workers=train.scaling.world_sizes[-1],
        micro_tokens=micro_rows * train.data.tokens_per_row,
        model=train.model,
        is_taught=train.objective.draft_target == "ar",
    )
