"""How many trials run at a time, and the Ray that they run on."""

import os

from a2d_ray.config import ScalingSection
from a2d_ray.runs.cluster import wants_gpu

DATA_CPUS = 1  # of each trial, for Ray Data beside its workers
DRIVER_CPUS = 0.5


def trial_cpus(scaling: ScalingSection) -> float:
    """CPUs that a trial takes: workers, its driver, Ray Data."""
    return scaling.world_sizes[-1] * scaling.cpus_per_worker + DRIVER_CPUS + DATA_CPUS


def start_ray(scaling: ScalingSection) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts a local Ray with room for its trials.

    Tune with Train needs the dashboard: without it the placement group of a stopped trial's
    workers stays, and the next trial waits for ever.
    """
    import ray

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
        return
    trials = _room(scaling, len(os.sched_getaffinity(0)), scaling.cpus_per_worker)
    cpus = int(trials * trial_cpus(scaling)) + 1 + DATA_CPUS
    ray.init(address="local", num_cpus=cpus, include_dashboard=True)


def concurrent_trials(scaling: ScalingSection) -> int:
    """Trials that fit into the running Ray at a time, at least one."""
    import ray

    total = ray.cluster_resources()
    trials = int((total.get("CPU", 1) - DATA_CPUS) // trial_cpus(scaling))
    if wants_gpu(scaling):
        trials = min(trials, int(total.get("GPU", 0)) // scaling.world_sizes[-1])
    return max(1, trials)


def _room(scaling: ScalingSection, cores: int, cpus_per_worker: int) -> int:
    return max(1, cores // (scaling.world_sizes[-1] * cpus_per_worker))
