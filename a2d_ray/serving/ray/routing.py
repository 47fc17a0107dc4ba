"""Ray Serve's router of conversations, with a bound on what one replica gets."""

import asyncio
from collections import Counter
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from a2d_ray.serving.ray.conversations import by_bounded_load


class BoundedHashRouter(ConsistentHashRouter):
    """Asks a conversation's own replica first, unless it holds more than its share.

    The ring alone moves on only when a replica is full, so what many prompts share, such as the
    examples of an evaluation, would keep one replica busy and the others idle.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Not Ray's own lengths of queues: in a burst they are what replicas said a while ago.
        self._under_way = Counter[ReplicaID]()
        self._choosing = asyncio.Lock()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are asked."""
        async with self._choosing:
            # The request before goes out when its own task runs: else a burst sees no load at all.
            await asyncio.sleep(0)
            ranks = await super().choose_replicas(candidate_replicas, pending_request)
            loads = [self._under_way[rank[0].replica_id] for rank in ranks]
            return [ranks[index] for index in by_bounded_load(loads)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counts a request."""
        super().on_send_request(replica_id)
        self._under_way[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Counts it no more: it is answered, refused, cancelled or lost."""
        super().on_request_completed(replica_id, internal_request_id)
        self._under_way -= Counter([replica_id])  # forgets what falls to zero
