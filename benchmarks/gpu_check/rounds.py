"""What a round of the engine costs the host: launches and waits, which only a GPU counts."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
_WAITS = "called a synchronizing CUDA operation"


@dataclass(frozen=True, kw_only=True)
class RoundCosts:
    """Of one round, on average.

    Attributes:
        launches: calls that put work on the device; a graph is one, a copy is one.
        waits: operations that wait for it, as torch warns of them.
    """

    launches: float
    waits: float


def round_costs(answer: Callable[[], None], num_rounds: Callable[[], int]) -> RoundCosts:
    """Launches and waits of rounds on a GPU.

    Args:
        answer: runs some rounds; it is run twice.
        num_rounds: how many were run so far.
    """
    before = num_rounds()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        answer()
    profiled = num_rounds()
    calls = ((event.key, event.count) for event in profiler.key_averages())
    num_launches = count_launches(calls)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            answer()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    num_waits = sum(_WAITS in str(warning.message) for warning in caught)
    return RoundCosts(
        launches=num_launches / (profiled - before),
        waits=num_waits / (num_rounds() - profiled),
    )


def count_launches(calls: Iterable[tuple[str, int]]) -> int:
    """Launches among calls of the CUDA runtime, which are given as names and numbers."""
    return sum(count for name, count in calls if name.startswith(LAUNCHES))
