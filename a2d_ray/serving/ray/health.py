"""Whether the models' deployments can answer, as Ray Serve knows them."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from ray import serve
from ray.serve.schema import DeploymentStatusOverview

from a2d_ray.http.errors import not_ready

_log = logging.getLogger(__name__)

_MAX_AGE_S = 1.0
_AT_WORK = ("HEALTHY", "UPSCALING", "DOWNSCALING")


def own_deployments() -> Mapping[str, DeploymentStatusOverview]:
    """The deployments of the application that this replica belongs to; asks Serve's controller."""
    return serve.status().applications[serve.get_replica_context().app_name].deployments


class DeploymentHealth:
    """Checks deployments against a status that is at most a second old.

    The path is open to all: a caller must neither load Serve's controller nor read its words.

    Args:
        ask: for the status of all deployments, by name; may block.
        scales_to_zero: whether no replica may be on purpose.
        clock: seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[str, DeploymentStatusOverview]] = own_deployments,
        *,
        scales_to_zero: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._scales_to_zero = scales_to_zero
        self._clock = clock
        self._known: Mapping[str, DeploymentStatusOverview] = {}
        self._known_until = -1.0
        self._lock = asyncio.Lock()

    async def check(self, name: str) -> None:
        """Returns if a deployment has a running replica, or none because nobody asks for it.

        Raises:
            RequestError: 503.
        """
        deployment = await self._deployment(name)
        if _is_running(deployment) or (self._scales_to_zero and deployment.status in _AT_WORK):
            return
        _log.warning("%s is %s: %s", name, deployment.status.value, deployment.message)
        raise not_ready("a model has no running replica")

    async def is_running(self, name: str) -> bool:
        """Whether a deployment has a running replica: others would have to wake up to answer."""
        return _is_running(await self._deployment(name))

    async def _deployment(self, name: str) -> DeploymentStatusOverview:
        async with self._lock:
            if self._clock() >= self._known_until:
                self._known = await asyncio.to_thread(self._ask)
                self._known_until = self._clock() + _MAX_AGE_S
        return self._known[name]


def _is_running(deployment: DeploymentStatusOverview) -> bool:
    return any(n for state, n in deployment.replica_states.items() if state == "RUNNING")
