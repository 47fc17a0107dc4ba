"""One copy to the device for everything that the host knows about a round."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_ALIGNMENT = 8


@dataclass(frozen=True)
class Sent(Generic[_T]):
    """What was sent.

    Attributes:
        value: on the device.
        packed: bytes that its tensors are pieces of; None: they stay on the CPU.
    """

    value: _T
    packed: Tensor | None


def send(value: _T, device: torch.device) -> _T:
    """The same with its tensors on a device: those of the host travel in one copy.

    Args:
        value: tensors in dataclasses, tuples, lists and dictionaries.
        device: where to; the CPU is where they are.
    """
    (sent,) = send_apart([value], device)
    return sent.value


def send_apart(values: Sequence[_T], device: torch.device) -> list[Sent[_T]]:
    """`send` of several values, still in one copy; each lies in a piece of its own."""
    if device.type == "cpu":
        return [Sent(value, None) for value in values]
    found: list[list[Tensor]] = []
    for value in values:
        found.append([])
        _collect(value, found[-1])
    ends = [0]
    for tensors in found:
        ends.append(ends[-1] + _starts(tensors)[-1])
    if not ends[-1]:
        return [Sent(value, None) for value in values]
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensors, first in zip(found, ends, strict=False):
        for tensor, start in zip(tensors, _starts(tensors), strict=False):
            _piece(packed, first + start, tensor).copy_(tensor)
    on_device = packed.to(device, non_blocking=True)
    parts = [on_device[first:stop] for first, stop in pairwise(ends)]
    pairs = zip(values, found, parts, strict=True)
    return [Sent(_rebuilt(value, _pieces(own, part)), part) for value, own, part in pairs]


def laid_in(sent: Sent[_T], packed: Tensor) -> _T:
    """The same value, its tensors pieces of other bytes, where they are copied to.

    Args:
        sent: all its tensors were sent.
        packed: as many bytes.
    """
    found: list[Tensor] = []
    _collect(sent.value, found, is_host=False)
    return _rebuilt(sent.value, _pieces(found, packed), is_host=False)


def signature(value: Any) -> Hashable:
    """Everything about a value but the numbers in its tensors: equal ones may share a graph."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(signature(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return tuple((name, signature(part)) for name, part in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(signature, value))
    return value  # type: ignore[no-any-return]


def _collect(value: Any, found: list[Tensor], *, is_host: bool = True) -> None:
    """Tensors of the host, or of the device."""
    if isinstance(value, Tensor):
        if (value.device.type == "cpu") == is_host:
            found.append(value)
        return
    for part in _parts(value):
        _collect(part, found, is_host=is_host)


def _parts(value: Any) -> Iterable[Any]:
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, tuple | list) else ()


def _rebuilt(value: Any, sent: Iterator[Tensor], *, is_host: bool = True) -> Any:
    """The value with other tensors in the place of what `_collect` finds."""

    def rebuilt(part: Any) -> Any:
        return _rebuilt(part, sent, is_host=is_host)

    if isinstance(value, Tensor):
        return next(sent) if (value.device.type == "cpu") == is_host else value
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{name: rebuilt(getattr(value, name)) for name in names})
    if isinstance(value, dict):
        return {name: rebuilt(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(rebuilt(part) for part in value)
    return value


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor begins in a piece of memory, and its end; bytes."""
    starts = [0]
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        starts.append(starts[-1] + -(-num_bytes // _ALIGNMENT) * _ALIGNMENT)
    return starts


def _pieces(tensors: Sequence[Tensor], packed: Tensor) -> Iterator[Tensor]:
    pairs = zip(tensors, _starts(tensors), strict=False)
    return (_piece(packed, start, tensor) for tensor, start in pairs)


def _piece(packed: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of a buffer that holds a tensor, as that tensor."""
    num_bytes = like.numel() * like.element_size()
    return packed[start : start + num_bytes].view(like.dtype).view(like.shape)
