"""What the machine or cluster has, and the refusal of more."""

import math
import os
from dataclasses import dataclass
from typing import Literal

from a2d_ray.config import ScalingSection
from a2d_ray.config.errors import OptionError
from a2d_ray.runs.cluster import start_ray


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of a place.

    Attributes:
        cpus: logical ones.
        gpus: whole ones.
        is_ray: of a Ray that runs, where everything shares them; else of this machine.
    """

    cpus: float
    gpus: float
    is_ray: bool


@dataclass(frozen=True)
class Share:
    """What each of several processes takes of a kind.

    Attributes:
        each: CPUs or GPUs.
        fix: what a user does to need fewer, beside asking for fewer processes.
    """

    each: float
    fix: str


def available_resources() -> Resources:
    """Ray's, if it runs or RAY_ADDRESS names a cluster, which is joined; else this machine's."""
    if os.environ.get("RAY_ADDRESS"):
        start_ray()
    import ray

    if ray.is_initialized():
        total = ray.cluster_resources()
        return Resources(total.get("CPU", 0), total.get("GPU", 0), is_ray=True)
    import torch

    return Resources(num_cores(), torch.cuda.device_count(), is_ray=False)


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wants_gpu(scaling: ScalingSection) -> bool:
    """Whether workers get a GPU each: as configured, or because there are GPUs."""
    return available_resources().gpus > 0 if scaling.use_gpu == "auto" else scaling.use_gpu


def gpu_share(asked: float | Literal["auto"], count: int, there: Resources) -> float:
    """GPUs that each of several processes reserves.

    Args:
        asked: as configured; auto: one each, or an equal share where there are fewer; 0 without.
        count: processes.
        there: what there is.
    """
    if asked != "auto":
        return asked
    num_gpus = int(there.gpus)
    if not num_gpus:
        return 0.0
    sharers = math.ceil(max(1, count) / num_gpus)
    return math.floor(10_000 / sharers) / 10_000  # Ray counts in ten-thousandths


def reserved_device(asked: str) -> str:
    """The device for a process that Ray started, by the name that was configured.

    ``auto`` is the CPU where Ray reserved no GPU for it: Ray hides none, and all such processes of
    a machine would share the first. A process of no Ray keeps the name: asking would start one.
    """
    import ray

    if not ray.is_initialized():
        return asked
    is_reserved = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return "cpu" if asked == "auto" and not is_reserved else asked


def check_room(
    there: Resources, field: str, count: int, *, cpus: Share, gpus: Share, num_other_cpus: int = 0
) -> None:
    """Refuses more processes than there is room for, which would wait for ever.

    Args:
        there: what there is.
        field: option that says how many processes there are.
        count: its value.
        cpus, gpus: of each.
        num_other_cpus: CPUs that are needed beside them.

    Raises:
        OptionError: how many are asked for, and how many there are.
    """
    place = "Ray" if there.is_ray else "this machine"
    more = ", or add nodes" if there.is_ray else ""
    for kind, share, beside, room in (
        ("CPU", cpus, num_other_cpus, there.cpus),
        ("GPU", gpus, 0, there.gpus),
    ):
        needed = count * share.each + beside
        if needed > room:
            rest = f" and {beside} beside them" if beside else ""
            raise OptionError(
                field,
                count,
                f"asks for {needed:g} {kind}s ({share.each:g} each{rest}), but {place} has "
                f"{room:g}",
                f"lower {field} or {share.fix}{more}",
            )
