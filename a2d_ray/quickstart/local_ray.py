"""The Ray that the quickstart runs on: this machine's, started when needed, always stopped."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    # Threads that wait must not take a core from those that work (a step took 3x as long).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Model and data come from packages.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # it listens on this machine only and ends with the command
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy laptop needs more than 5 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are taken once per check
}
MIN_CPUS = 4  # logical: the workers, Ray Data's tasks beside them, and Serve
OBJECT_STORE_BYTES = 300 * 2**20


def set_environment() -> None:
    """Settings that must be there before torch and Ray are imported; the user's own win."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def local_ray(num_workers: int) -> Iterator[None]:
    """Ray runs while the block does. With ``RAY_ADDRESS`` set, that cluster is used and left on."""
    import ray
    import ray.data

    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        ray.init(
            address="local",
            num_cpus=max(MIN_CPUS, num_workers + 2, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,  # Ray Train's clean-up asks its API, and complains without it
            logging_level=logging.WARNING,
        )
    try:
        # Without a terminal, Ray Data would log its bars every few seconds.
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        yield
    finally:
        ray.shutdown()
