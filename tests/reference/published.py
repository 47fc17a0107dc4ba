"""Numbers of an independent implementation of the recipe, on a tiny model.

They lie beside this file. `A2D_REFERENCE_DIR` names another directory of the same files; the tests
run over whatever cases those files list.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np
import torch

from a2d_ray.models.checkpoint import Checkpoint, load_checkpoint

REFERENCE_DIR = Path(os.environ.get("A2D_REFERENCE_DIR", Path(__file__).parent))
MODEL_PATH = REFERENCE_DIR / "tiny_a2d_qwen3"
REFERENCE = json.loads((REFERENCE_DIR / "reference.json").read_text())
IDS: dict[str, int] = REFERENCE["ids"]


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    """All arrays of `reference.npz` by name."""
    with np.load(REFERENCE_DIR / "reference.npz") as file:
        return {name: file[name] for name in file.files}


def array_names(prefix: str) -> list[str]:
    """Names of the arrays that begin with `prefix`; there is at least one."""
    names = [name for name in arrays() if name.startswith(prefix)]
    assert names, f"{REFERENCE_DIR}/reference.npz holds no {prefix}*"
    return names


def tensor(name: str) -> torch.Tensor:
    """One array as a tensor."""
    return torch.from_numpy(arrays()[name].copy())


def schedule_name(theirs: str) -> str:
    """`LinearAlphaScheduler` -> `linear`."""
    return theirs.removesuffix("AlphaScheduler").lower()


def load_reference(objective: str = "bd3lm", block_size: int = 4) -> Checkpoint:
    """The tiny model in fp32, with what its directory does not say."""
    return load_checkpoint(
        MODEL_PATH,
        dtype=torch.float32,
        device="cpu",
        mask_token_id=IDS["MASK"],
        objective=objective,
        block_size=block_size,
        block_grid="prompt_end",
    )
