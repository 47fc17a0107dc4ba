"""What a report must hold so that its numbers can be repeated: code, versions, model, data."""

import contextlib
import hashlib
import importlib.metadata
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from a2d_ray.config import EvaluateConfig

PACKAGES = ("a2d-ray", "lm-eval", "torch", "transformers", "datasets", "ray", "reasoning-gym")
PACKAGE = Path(__file__).parents[2]


def code_state(package: Path = PACKAGE) -> dict[str, Any]:
    """``commit`` of the repository that tracks the package, and ``dirty``: if its files changed.

    Both are None elsewhere: a repository that merely holds the environment in which the package
    is installed says nothing about it.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    changes = _git(package, "status", "--porcelain", "--", ".")
    return {"commit": _git(package, "rev-parse", "HEAD"), "dirty": bool(changes)}


def _git(directory: Path, *args: str) -> str | None:
    """What git says; None where it refuses or is not there."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "-C", str(directory), *args], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def model_state(config: EvaluateConfig, model: Any) -> dict[str, Any]:
    """``path``, ``threads``, and what the model says of itself: a fingerprint, with the dtype and
    the device that were chosen."""
    threads = config.cpus_per_worker if config.num_workers else torch.get_num_threads()
    state = {"path": config.model.path, "threads": None if config.endpoint else threads}
    if described := getattr(model, "described", None):
        return state | described.fingerprint
    if original := getattr(model, "model", None):  # of the harness's own
        dtype = str(original.dtype).removeprefix("torch.")
        return state | {"dtype": dtype, "device": original.device.type}
    return state


def data_fingerprint(document_hashes: Iterable[str]) -> str:
    """Of the documents that were measured, whatever they came from."""
    return hashlib.sha256("\n".join(document_hashes).encode()).hexdigest()
