"""Which rank of a run the others keep waiting for."""

import json
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from a2d_ray.runs.storage import WORKERS_FILE, RunDirectory

MIN_TIMED_STEPS = 5
SHARE = 0.8  # of the steps in which one rank must be the slowest; by chance it is 1 / ranks
SLOWER = 1.2  # times the median rank, below which nothing is said


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank that is persistently slower than the others.

    Attributes:
        rank: of the worker.
        node: address of its node; None: not known.
        own_s: median seconds of its own work in a step: rows, layout, forward passes.
        median_s: the same of the median rank.
        num_steps: recent steps in which it was the slowest.
        of_steps: recent steps.
    """

    rank: int
    node: str | None
    own_s: float
    median_s: float
    num_steps: int
    of_steps: int

    def __str__(self) -> str:
        return (
            f"rank {self.rank} on node {self.node or 'unknown'} is slow: {self.own_s:.3g} s of its "
            f"own work a step, {self.own_s / self.median_s:.1f}x the median rank "
            f"({self.median_s:.3g} s), slowest in {self.num_steps} of {self.of_steps} recent steps"
        )


def find_straggler(steps: list[dict[str, Any]], directory: RunDirectory) -> Straggler | None:
    """The rank that was the slowest in most of these steps, and by a margin; None: there is none.

    Args:
        steps: recent lines of metrics.jsonl.
        directory: of the run, where the nodes of its workers are noted.
    """
    timed = [line for line in steps if "time/slowest_rank" in line]
    if len(timed) < MIN_TIMED_STEPS:
        return None
    ((rank, times),) = Counter(line["time/slowest_rank"] for line in timed).most_common(1)
    own = [line for line in timed if line["time/slowest_rank"] == rank]
    own_s, median_s = (
        statistics.median(line[key] for line in own)
        for key in ("time/slowest_rank_s", "time/median_rank_s")
    )
    if times < SHARE * len(timed) or own_s < SLOWER * median_s:
        return None
    nodes = json.loads(directory.read(WORKERS_FILE) or b"[]")
    return Straggler(
        rank=rank,
        node=nodes[rank] if rank < len(nodes) else None,
        own_s=own_s,
        median_s=median_s,
        num_steps=times,
        of_steps=len(timed),
    )
