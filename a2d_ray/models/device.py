"""Which device and precision a machine offers. Torch is imported when asked."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_DTYPES = ("auto", "float32", "bfloat16")


def resolve_device(name: str) -> "torch.device":
    """The device: ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: a device that torch does not know or that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not one that torch knows (cpu, cuda, ...)") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: torch sees no CUDA device here; use cpu or auto")
    return device


def resolve_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The precision: ``auto`` is bfloat16 on GPUs and on CPUs with bf16 instructions, else fp32.

    Raises:
        ValueError: a name that is not known.
    """
    import torch

    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" or _cpu_has_bf16() else "float32"
    return getattr(torch, name)


def _cpu_has_bf16() -> bool:
    import torch

    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(is_supported())
