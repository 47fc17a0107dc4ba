"""A device that is not there: tensors say ``standin:0`` and hold values of the CPU.

The real program runs on it by the code paths of an accelerator, without a GPU or a compiler:
torch's PrivateUse1 backend, in Python, under a wrapper subclass. Mixing devices raises as on CUDA.
Kernel launches, copies and waits are counted, with the line of the package that caused them.

What it cannot show: kernels, streams, speed. A count of launches is a lower bound: an operation is
one, whatever CUDA makes of it, but for those of `SEVERAL`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

PACKAGE = str(Path(__file__).parents[2] / "a2d_ray")

# Operations that launch nothing: views, allocations, questions about a tensor.
_FREE = """
view _unsafe_view transpose t permute slice select expand unsqueeze squeeze split unfold chunk
split_with_sizes as_strided detach alias unbind diagonal _reshape_alias narrow detach_
lift_fresh view_as_real empty empty_like empty_strided new_empty new_empty_strided set_ resize_
view_as T sym_size sym_stride stride size is_pinned expand_as swapaxes movedim tensor_split
unflatten lift is_floating_point is_complex result_type numpy_T
"""
FREE = frozenset(_FREE.split())
# Operations that wait for the device: their result is a number, or has a size that the host asks.
_WAITING = """
nonzero _local_scalar_dense item masked_select unique_dim _unique2 unique_consecutive bincount
equal is_nonzero
"""
WAITING = frozenset(_WAITING.split())
SEVERAL = {"sort": 3, "argsort": 3, "topk": 3, "logsumexp": 7, "isfinite": 4, "isin": 8}
COPIES = frozenset(
    {torch.ops.aten.to.device, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.other}
)
INDEXING = frozenset(
    ["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"]
)


@dataclass
class Counts:
    """What ran on the device, by the line that caused it.

    Attributes:
        launches: kernels.
        waits: synchronisations; every copy to the host is one.
        to_device, to_host: copies.
        bytes_to_device, bytes_to_host: what they carried.
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    to_device: Counter[str] = field(default_factory=Counter)
    to_host: Counter[str] = field(default_factory=Counter)
    bytes_to_device: int = 0
    bytes_to_host: int = 0


class Device:
    """Counts; `counts` is replaced by `counting`."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.is_registered = self.is_present = False

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Counts what runs within it, and nothing before."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = before

    @contextmanager
    def present(self) -> Iterator[torch.device]:
        """Within it the device is there, and factories know it."""
        if not self.is_registered:
            _setup_privateuseone_for_python_backend("standin", _Module(), _Hook())
            self.is_registered = True
        enter, leave = torch.inference_mode.__enter__, torch.inference_mode.__exit__
        torch.inference_mode.__enter__ = _without_gradients  # wrappers made in it have no version
        torch.inference_mode.__exit__ = _with_gradients
        torch._C._set_only_lift_cpu_tensors(True)
        self.is_present = True
        try:
            with _Mode():
                yield torch.device("standin:0")
        finally:
            self.is_present = False
            torch._C._set_only_lift_cpu_tensors(False)
            torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter, leave


DEVICE = Device()


def _without_gradients(self: torch.inference_mode) -> None:
    self._stand_in = torch.no_grad()  # type: ignore[attr-defined]
    self._stand_in.__enter__()  # type: ignore[attr-defined]


def _with_gradients(self: torch.inference_mode, *error: Any) -> None:
    self._stand_in.__exit__(*error)  # type: ignore[attr-defined]


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return DEVICE.is_present


class _Module(_DummyBackendModule):
    def is_available(self) -> bool:
        return DEVICE.is_present

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32]


class StandIn(torch.Tensor):
    """A tensor of the device; `inner` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> "StandIn":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("standin:0"),
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StandIn({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return dispatch(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        assert isinstance(new, StandIn), "a parameter would leave the device"
        torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.inner = new.inner


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not types and not (kwargs and "device" in kwargs) and func not in COPIES:
            return func(*args, **kwargs or {})  # the host's alone
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the values, and counts it if it is the device's."""
    name = func._schema.name.split("::")[1]
    flat = [*_leaves(args), *_leaves(tuple(kwargs.values()))]
    ours = [x for x in flat if isinstance(x, StandIn)]
    if name == "to":
        return _to(func, args, kwargs)
    if name == "_to_copy":
        return _to_copy(func, args, kwargs)
    if name == "copy_":
        return _copy(func, args)
    if not ours and not _is_ours(kwargs.get("device")):
        return func(*args, **kwargs)
    _check_mixing(name, args, flat, ours)
    if name == "contiguous" and args[0].inner.is_contiguous():
        return args[0]
    values = {name: _mapped(_values, value) for name, value in kwargs.items()}
    result = func(*_mapped(_values, args), **_on_cpu(values))
    _count(name, args, flat, result)
    wrapped = _mapped(lambda x: StandIn(x) if type(x) is torch.Tensor else x, result)
    if not any(isinstance(x, StandIn) for x in _leaves((wrapped,))):
        return wrapped
    try:
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    except AssertionError:  # an operation that torch has no rule of aliases for
        return wrapped


def _count(name: str, args: tuple[Any, ...], flat: list[Any], result: Any) -> None:
    counts, line = DEVICE.counts, calling_line()
    if name in WAITING or (name in INDEXING and any(_is_mask(x) for x in args[1])):
        counts.waits[f"{name} {line}"] += 1
        if name in ("_local_scalar_dense", "item", "equal", "is_nonzero"):
            counts.to_host[line] += 1
            counts.bytes_to_host += 8
    if name in INDEXING:
        for x in args[1]:
            if isinstance(x, torch.Tensor) and not isinstance(x, StandIn):
                counts.to_device[line] += 1
                counts.bytes_to_device += _num_bytes(x)
    if name in ("reshape", "flatten", "contiguous"):
        is_copied = (
            result.untyped_storage().data_ptr() != args[0].inner.untyped_storage().data_ptr()
        )
        counts.launches[line] += is_copied
    elif name not in FREE:
        counts.launches[line] += SEVERAL.get(name, 1)


def _check_mixing(name: str, args: tuple[Any, ...], flat: list[Any], ours: list[StandIn]) -> None:
    theirs = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, StandIn)]
    if name in INDEXING:  # as on CUDA, indices may lie on the host
        theirs = [args[0]] if not isinstance(args[0], StandIn) else theirs[: "put" in name]
        theirs = [x for x in theirs if not any(x is index for index in args[1])]
    if ours and any(x.dim() > 0 for x in theirs):
        shapes = [tuple(x.shape) for x in ours], [tuple(x.shape) for x in theirs]
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {name} at {calling_line()}, {shapes}"
        )


def _to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``Tensor.to``, which inference mode does not take apart."""
    source = args[0]
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    for x in args[1:]:
        if isinstance(x, torch.dtype):
            dtype = x
        elif isinstance(x, (torch.device, str)):
            device = x
        elif isinstance(x, torch.Tensor):
            dtype, device = x.dtype, x.device
    is_ours = isinstance(source, StandIn)
    goes_to = is_ours if device is None else _is_ours(device)
    if goes_to == is_ours and dtype in (None, source.dtype):
        return source
    target = torch.device("standin:0" if goes_to else "cpu")
    wanted = {"dtype": dtype, "device": target}
    return _to_copy(torch.ops.aten._to_copy.default, (source,), wanted)


def _to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source, device = args[0], kwargs.get("device")
    is_ours = isinstance(source, StandIn)
    goes_to = is_ours if device is None else _is_ours(device)
    result = func(_values(source), **_on_cpu(kwargs))
    if result is _values(source):
        result = result.clone()
    counts, line = DEVICE.counts, calling_line()
    if is_ours and goes_to:
        counts.launches[line] += 1
    elif is_ours:
        counts.launches[line] += source.dtype != result.dtype
        _count_to_host(result)
    elif goes_to:
        _count_to_device(result)
    return StandIn(result) if goes_to else result


def _copy(func: Any, args: tuple[Any, ...]) -> Any:
    target, source = args[:2]
    func(_values(target), _values(source), *args[2:])
    pair = isinstance(target, StandIn), isinstance(source, StandIn)
    if pair == (True, True):
        DEVICE.counts.launches[calling_line()] += 1
    elif pair == (True, False):
        _count_to_device(source)
    elif pair == (False, True):
        _count_to_host(source.inner)
    return target


def _count_to_device(x: torch.Tensor) -> None:
    DEVICE.counts.to_device[calling_line()] += 1
    DEVICE.counts.bytes_to_device += _num_bytes(x)


def _count_to_host(x: torch.Tensor) -> None:
    DEVICE.counts.to_host[calling_line()] += 1
    DEVICE.counts.waits[f"copy to the host {calling_line()}"] += 1
    DEVICE.counts.bytes_to_host += _num_bytes(x)


def calling_line() -> str:
    """The innermost line of the package that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def kernel(run: Callable[..., Any]) -> Callable[..., Any]:
    """One launch of the device, computed by a function of CPU tensors."""

    def launched(*args: Any, **kwargs: Any) -> Any:
        DEVICE.counts.launches[calling_line()] += 1
        with torch.no_grad(), _disable_current_modes():
            values = {name: _mapped(_values, value) for name, value in kwargs.items()}
            result = run(*_mapped(_values, args), **values)
        return _mapped(lambda x: StandIn(x) if isinstance(x, torch.Tensor) else x, result)

    return launched


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("standin", "privateuseone")


def _is_mask(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)


def _leaves(parts: Any) -> Iterator[Any]:
    """What is in tuples and lists; torch's own trees take several times as long."""
    for part in parts:
        if isinstance(part, (tuple, list)):
            yield from _leaves(part)
        else:
            yield part


def _mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """The same with its leaves changed."""
    if isinstance(x, (tuple, list)) and not isinstance(x, torch.Size):
        return type(x)([_mapped(change, part) for part in x])
    return change(x)


def _values(x: Any) -> Any:
    return x.inner if isinstance(x, StandIn) else x


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    changed = dict(kwargs)
    if changed.get("device") is not None:
        changed["device"] = torch.device("cpu")
    if changed.get("pin_memory"):
        changed["pin_memory"] = False
    return changed


def _num_bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()
