"""What training kernels need of a machine with GPUs: a C compiler, Python's headers, bfloat16."""

import os
import shutil
import sysconfig
from pathlib import Path

from a2d_ray.config import OptionError, ScalingSection
from a2d_ray.runs.resources import wants_gpu

_COMPILERS = ("gcc", "clang")  # in Triton's order; the variable CC stands before them
_BF16_CAPABILITY = (8, 0)


def check_gpus(scaling: ScalingSection, dtype: str) -> None:
    """Refuses GPUs of this machine that could not train, before rows are packed.

    Where the GPUs are on other machines their workers check, when they start.

    Args:
        scaling: who takes GPUs.
        dtype: `model.dtype`.

    Raises:
        OptionError: what is missing, and the fix.
    """
    import torch

    if not torch.cuda.is_available() or not wants_gpu(scaling):
        return
    try:
        check_toolchain()
    except RuntimeError as error:
        fix = "install it, or set scaling.use_gpu=false"
        raise OptionError("scaling.use_gpu", scaling.use_gpu, str(error), fix) from None
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    problem = bf16_problem(name, capability)
    if problem is not None and dtype != "float32":
        fix = "set model.dtype=float32 (slow), or take a GPU of 2020 or later (A100, L4, H100)"
        raise OptionError("model.dtype", dtype, problem, fix)


def check_toolchain(headers: str | None = None) -> None:
    """Refuses a machine on which Triton cannot build its launchers.

    Args:
        headers: directory of Python.h; None: this Python's.

    Raises:
        RuntimeError: what is missing, and the packages that bring it.
    """
    if "CC" not in os.environ and not any(map(shutil.which, _COMPILERS)):
        raise RuntimeError(
            "needs a C compiler: attention on GPUs is compiled when training starts, and there is "
            "neither gcc nor clang in PATH, nor CC (Debian, Ubuntu: apt-get install gcc)"
        )
    found = Path(headers or sysconfig.get_paths()["include"]) / "Python.h"
    if not found.is_file():
        raise RuntimeError(
            f"needs Python's headers: attention on GPUs is compiled when training starts, and "
            f"there is no {found} (Debian, Ubuntu: apt-get install python3-dev)"
        )


def bf16_problem(name: str, capability: tuple[int, int]) -> str | None:
    """What a GPU lacks for bfloat16, or None.

    Args:
        name: of the GPU.
        capability: its CUDA compute capability.
    """
    if capability >= _BF16_CAPABILITY:
        return None
    major, minor = capability
    return f"is bfloat16 on GPUs, and {name} (compute capability {major}.{minor}) has none"
