"""The one way to start or join Ray."""

import contextlib
import logging
import os
import random
import socket
from collections.abc import Iterator

from a2d_ray.runs.environment import set_environment
from a2d_ray.signals import interrupts_wait

_log = logging.getLogger(__name__)
_API_VARIABLE = "RAY_API_SERVER_ADDRESS"


def start_ray(
    num_cpus: int | None = None,
    *,
    object_store_bytes: int | None = None,
    is_quiet: bool = False,
    shows_workers: bool = True,
) -> bool:
    """Joins the cluster that RAY_ADDRESS names, or starts a private Ray; does nothing if one runs.

    A private Ray ends with this process at the latest.

    Args:
        num_cpus: logical ones of a private Ray; None: as many as the machine has. Ray Data's tasks
            and the workers share them, so it may be given more.
        object_store_bytes: of a private Ray; None: Ray's own choice, 30 % of the memory.
        is_quiet: Ray says no more than warnings.
        shows_workers: what workers print, this process prints too.

    Returns:
        Whether Ray runs for this process because of this call.
    """
    set_environment()
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    _log.info("joining Ray at %s" if address else "starting Ray%s", address or "")
    level = logging.WARNING if is_quiet else logging.INFO
    if address:
        with interrupts_wait():
            ray.init(logging_level=level, log_to_driver=shows_workers)
        return True
    port = _free_port()
    with interrupts_wait(), _workers_find_their_own_ray(port):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes,
            # Ray Train and Tune ask its API whether runs and trials still live: without it they
            # warn once a second, and what a dead trial held stays taken.
            include_dashboard=True,
            dashboard_port=port,
            logging_level=level,
            log_to_driver=shows_workers,
        )
    return True


@contextlib.contextmanager
def running_ray(
    num_cpus: int | None = None,
    *,
    object_store_bytes: int | None = None,
    is_quiet: bool = False,
    shows_workers: bool = True,
) -> Iterator[None]:
    """Ray runs while the block does; see `start_ray`. What was started is stopped, a joined cluster
    left, and a Ray that ran before goes on.
    """
    is_ours = start_ray(
        num_cpus,
        object_store_bytes=object_store_bytes,
        is_quiet=is_quiet,
        shows_workers=shows_workers,
    )
    try:
        yield
    finally:
        if is_ours:
            import ray

            ray.shutdown()


@contextlib.contextmanager
def _workers_find_their_own_ray(port: int) -> Iterator[None]:
    """Processes that start in here ask the dashboard at `port`.

    They would guess: where two Rays are on a machine, Ray Train's guard of a run fails, and beside
    one that `ray start` started it asks that, takes our run for dead and leaves.
    """
    before = os.environ.get(_API_VARIABLE)
    os.environ[_API_VARIABLE] = f"http://127.0.0.1:{port}"
    try:
        yield
    finally:
        del os.environ[_API_VARIABLE]
        if before is not None:
            os.environ[_API_VARIABLE] = before


def _free_port() -> int:
    """One that neither the system nor Ray gives to anybody by itself."""
    draw = random.SystemRandom()  # the user's seeds are none of its business
    while True:
        port = draw.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
