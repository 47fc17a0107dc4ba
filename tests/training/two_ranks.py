"""Runs a function on two ranks of a gloo group, each a process of its own."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(function, directory: Path, *args):
    """Calls function(rank, *args) on both; what they return is pickled through `directory`."""
    mp.spawn(_rank, (function, str(directory), *args), nprocs=2)
    return [torch.load(directory / f"rank{r}.pt", weights_only=False) for r in range(2)]


def _rank(rank, function, directory, *args):
    torch.set_num_threads(1)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(function(rank, *args), Path(directory) / f"rank{rank}.pt")
    dist.destroy_process_group()
