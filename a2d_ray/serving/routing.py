"""Ray Serve's router of conversations, with a bound on what one replica gets."""

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from a2d_ray.serving.conversations import by_bounded_load


class BoundedHashRouter(ConsistentHashRouter):
    """Asks a conversation's own replica first, unless it holds more than its share.

    The ring alone moves on only when a replica is full, so what many prompts share, such as the
    examples of an evaluation, would keep one replica busy and the others idle.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are asked."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        # What is not known was not heard of for seconds: asking is how to learn.
        loads = [self.replica_queue_len_cache.get(rank[0].replica_id) or 0 for rank in ranks]
        return [ranks[index] for index in by_bounded_load(loads)]
