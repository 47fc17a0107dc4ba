"""What rounds cost on this machine: measured once per model, to plan drafts."""

import math
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from a2d_ray.diffusion.decoding import most_likely, token_gumbel
from a2d_ray.generation.engine.cache import KVStore, SlotStore
from a2d_ray.generation.engine.drafting import CALIBRATED, Acceptance, Costs, Drafter
from a2d_ray.generation.engine.runner import ModelRunner
from a2d_ray.generation.engine.work import Work, idle_work

_T = TypeVar("_T")

MEASURED_TIMES = 3
DRAWN_ROWS = 8
TOGETHER = 8  # requests of the round that tells what one more costs
KEPT_TOKENS = 32  # that each of them has stored

# What is known of a model, whatever its weights become.
_costs: "weakref.WeakKeyDictionary[Any, Costs]" = weakref.WeakKeyDictionary()
_acceptance: "weakref.WeakKeyDictionary[Any, Acceptance]" = weakref.WeakKeyDictionary()


def make_drafter(runner: ModelRunner, max_length: int) -> Drafter:
    """Plans drafts for an engine; its engines share what is known of a model."""
    return Drafter(
        measure=partial(measure_costs, runner, max_length),
        acceptance=_acceptance.setdefault(runner.model, Acceptance()),
    )


@torch.inference_mode()
def measure_costs(runner: ModelRunner, max_length: int) -> Costs:
    """Times forwards, heads, draws and requests: two seconds on a CPU for 135M parameters.

    A model is measured once.
    """
    known = _costs.get(runner.model)
    if known is not None:
        return known
    sizes = [size for size in CALIBRATED if size <= max(max_length, 2)]
    layers = dict.fromkeys(sizes, math.inf)
    head = dict.fromkeys(sizes, math.inf)
    draw_s = together_s = math.inf
    works = _requests(min(TOGETHER, sizes[-1]), min(KEPT_TOKENS, max_length - 1))
    store = (KVStore if runner.device.type == "cpu" else SlotStore)(works[-1].all_runs[-1][1])
    runner.idle_round(works, store)  # memory is taken
    clock = partial(timed, runner.device)
    for _ in range(MEASURED_TIMES):  # in turns: a machine that slows down slows all of them
        for size in sizes:
            seconds, (hidden_nH, _) = clock(partial(runner.idle_round, [idle_work(size)]))
            layers[size] = min(layers[size], seconds)
            seconds, logits_nV = clock(partial(runner.idle_head, hidden_nH))
            head[size] = min(head[size], seconds)
            if size <= DRAWN_ROWS:  # as long for each row
                seconds, _ = clock(partial(idle_draw, logits_nV))
                draw_s = min(draw_s, seconds / size)
        seconds, _ = clock(partial(runner.idle_round, works, store))
        together_s = min(together_s, seconds)
    request_s = max(together_s - layers[len(works)], 0.0) / (len(works) - 1)
    costs = _costs[runner.model] = Costs(
        layers,
        head,
        draw_s=draw_s,
        request_s=request_s,
        most_spare_rows=runner.most_spare_rows,
    )
    return costs


def idle_draw(logits_nV: Tensor) -> Tensor:
    """Tokens that nobody asks for."""
    start_n = torch.zeros(len(logits_nV), dtype=torch.int64, device=logits_nV.device)
    return most_likely(logits_nV + token_gumbel(start_n, logits_nV.shape[-1]))


def timed(device: torch.device, run: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds that it takes, CPU seconds on a CPU, and what it returns."""
    is_cpu = device.type == "cpu"
    clock = time.process_time if is_cpu else time.perf_counter
    started = clock()
    result = run()
    if not is_cpu:
        torch.accelerator.synchronize()
    return clock() - started, result


def _requests(count: int, num_kept: int) -> list[Work]:
    """Requests with one new token each.

    What they have stored lies in two runs, as where the beginning of a prompt is shared.
    """
    works = []
    for first in range(0, count * (num_kept + 2), num_kept + 2):
        cut = first + num_kept // 2
        stop = first + num_kept + 2
        all_runs = [(first, cut), (cut + 1, stop)]
        works.append(
            idle_work(1, num_kept=num_kept, new_runs=[(stop - 1, stop)], all_runs=all_runs)
        )
    return works
