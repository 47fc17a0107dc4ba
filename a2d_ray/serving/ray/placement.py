"""How much of a GPU a replica reserves."""

from a2d_ray.config import ServeConfig
from a2d_ray.runs.resources import Resources, gpu_share


def replica_gpus(config: ServeConfig, there: Resources) -> float:
    """GPUs of one replica; `gpus_per_replica: auto` divides those that there are.

    Args:
        config: of the endpoint.
        there: what there is.
    """
    scaling = config.autoscaling
    count = config.num_replicas if scaling is None else scaling.min_replicas
    return gpu_share(config.gpus_per_replica, len(config.models) * count, there)
