"""Starts or joins Ray, and refuses what the machine or cluster does not have."""

import os

from a2d_ray.config import OptionError, ScalingSection

# Threads that spin while they wait starve the other worker when cores are shared; the Hub's
# tokenizers fork; neither may be set after a process has started.
WORKER_ENV = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


CLUSTER = "the Ray cluster"


def ensure_ray(num_logical_cpus: int | None = None) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts a local Ray; does nothing if it runs.

    Args:
        num_logical_cpus: of a local Ray; None: as many as there are. Ray Data tasks and Train
            workers share them, so a local Ray may be given more than the machine's cores.
    """
    import ray

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
        return
    ray.init(address="local", num_cpus=num_logical_cpus, include_dashboard=False)


def check_resources(scaling: ScalingSection, *, use_gpu: bool) -> None:
    """Refuses more workers than there are CPUs or GPUs, instead of waiting for ever.

    Looks at the cluster if Ray runs or RAY_ADDRESS names one, else at this machine.

    Raises:
        OptionError: says how many there are.
    """
    place, cpus, gpus = _available()
    num_workers = scaling.world_sizes[0]
    # A cluster's CPUs are counted: one must be left for Ray Data. A Ray of our own gets more.
    spare = 1 if place == CLUSTER else 0
    needed_cpus = num_workers * scaling.cpus_per_worker + spare
    if needed_cpus > cpus:
        extra, more = (" and one for Ray Data", ", or add nodes") if spare else ("", "")
        raise OptionError(
            "scaling.num_workers",
            num_workers,
            f"times scaling.cpus_per_worker={scaling.cpus_per_worker}{extra} asks for "
            f"{needed_cpus} CPUs, but {place} has {cpus}",
            f"lower scaling.num_workers or scaling.cpus_per_worker{more}",
        )
    if use_gpu and num_workers > gpus:
        raise OptionError(
            "scaling.num_workers",
            num_workers,
            f"with scaling.use_gpu asks for as many GPUs, but {place} has {gpus}",
            "lower scaling.num_workers or set scaling.use_gpu=false",
        )


def wants_gpu(scaling: ScalingSection) -> bool:
    """Whether workers get a GPU each: as configured, or because there are GPUs."""
    return _available()[2] > 0 if scaling.use_gpu == "auto" else scaling.use_gpu


def _available() -> tuple[str, int, int]:
    """Where workers run, and its CPUs and GPUs."""
    if os.environ.get("RAY_ADDRESS"):
        ensure_ray()
    import ray

    if ray.is_initialized():
        total = ray.cluster_resources()
        return CLUSTER, int(total.get("CPU", 0)), int(total.get("GPU", 0))
    import torch

    return "this machine", len(os.sched_getaffinity(0)), torch.cuda.device_count()
