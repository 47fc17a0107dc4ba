"""Runs of equal values in flat tensors: how documents, segments and blocks are grouped."""

import torch
from torch import Tensor


def run_index(*keys: Tensor) -> Tensor:
    """Index of the run of equal keys that each element belongs to: [5, 5, 7] -> [0, 0, 1].

    Args:
        keys: tensors [N]; a run ends where any of them changes.
    """
    starts = torch.zeros_like(keys[0])
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    return starts.cumsum(0)


def index_in_run(run: Tensor) -> Tensor:
    """Index of each element within its run of equal values: [5, 5, 7] -> [0, 1, 0]."""
    index = torch.arange(run.numel(), device=run.device)
    if not run.numel():
        return index
    starts = torch.ones_like(run, dtype=torch.bool)
    starts[1:] = run[1:] != run[:-1]
    return index - torch.where(starts, index, 0).cummax(0).values


def first_of_run(run: Tensor) -> Tensor:
    """Position of the first element of each run of a `run_index`: [0, 0, 1] -> [0, 2]."""
    size = torch.bincount(run)
    return size.cumsum(0) - size
