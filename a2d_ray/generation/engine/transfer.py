"""One copy to the device for everything that the host knows about a round."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_ALIGNMENT = 8


def send(value: _T, device: torch.device) -> _T:
    """The same with its tensors on a device: those of the host travel in one copy.

    Args:
        value: tensors in dataclasses, tuples, lists and dictionaries.
        device: where to; the CPU is where they are.
    """
    if device.type == "cpu":
        return value
    found: list[Tensor] = []
    _collect(value, found)
    return _rebuilt(value, iter(_sent(found, device))) if found else value


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            found.append(value)
    elif is_dataclass(value):
        for field in fields(value):
            _collect(getattr(value, field.name), found)
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, found)
    elif isinstance(value, tuple | list):
        for part in value:
            _collect(part, found)


def _rebuilt(value: Any, sent: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(sent) if value.device.type == "cpu" else value
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{name: _rebuilt(getattr(value, name), sent) for name in names})
    if isinstance(value, dict):
        return {name: _rebuilt(part, sent) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_rebuilt(part, sent) for part in value)
    return value


def _sent(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors, which lie in one piece of the device's memory."""
    starts = [0]
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        starts.append(starts[-1] + -(-num_bytes // _ALIGNMENT) * _ALIGNMENT)
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, start in zip(tensors, starts, strict=False):
        _piece(packed, start, tensor).copy_(tensor)
    on_device = packed.to(device, non_blocking=True)
    pairs = zip(tensors, starts, strict=False)
    return [_piece(on_device, start, tensor) for tensor, start in pairs]


def _piece(packed: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of a buffer that holds a tensor, as that tensor."""
    num_bytes = like.numel() * like.element_size()
    return packed[start : start + num_bytes].view(like.dtype).view(like.shape)
