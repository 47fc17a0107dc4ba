"""Sums in fp32 are equal up to their rounding.

A sum is rounded by the order of its terms, and that depends on shapes, threads and the processor.
An element near zero is what larger terms leave of each other, so its own size says nothing of its
rounding: the error of a tensor is measured against the largest magnitude in it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROUNDING = 1e-5  # of the largest magnitude; what was seen is below 3e-6
CANCELLED = 0.01  # of the largest tensor: what is smaller counts as that large

Tensors = float | Tensor | Sequence[float | Tensor] | Mapping[str, float | Tensor]


def assert_close(actual: Tensors, expected: Tensors, *, rounding: float = ROUNDING) -> None:
    """Each tensor is the expected one but for rounding.

    A gradient that is zero by cancellation has an error of the size of what was cancelled, so its
    scale is that of the tensors beside it.

    Args:
        actual, expected: a tensor, a list of tensors, or tensors by name; a number is a tensor.
        rounding: largest error as a share of the scale.
    """
    found, wanted = _named(actual), _named(expected)
    assert found.keys() == wanted.keys(), f"{sorted(found)} are not {sorted(wanted)}"
    largest = max(map(_magnitude, wanted.values()), default=0.0)
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        assert tensor.isfinite().all(), f"{name}: what is expected is not finite"
        error = _magnitude(found[name] - tensor)
        bound = rounding * max(_magnitude(tensor), CANCELLED * largest)
        assert error <= bound, f"{name}: the error is {error:.2e}, the bound {bound:.2e}"


def _named(tensors: Tensors) -> dict[str, Tensor]:
    if isinstance(tensors, list | tuple):
        tensors = {f"[{i}]": tensor for i, tensor in enumerate(tensors)}
    if not isinstance(tensors, Mapping):
        tensors = {"the tensor": tensors}
    options = {"dtype": torch.float64, "device": "cpu"}
    return {name: torch.as_tensor(x, **options).detach() for name, x in tensors.items()}


def _magnitude(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
