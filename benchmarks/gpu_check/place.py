"""Where the check runs, and how time is told there."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from a2d_ray.planning.devices import peak_tflops
from a2d_ray.planning.sizes import ModelSizes, find_sizes
from benchmarks.gpu_check.figures import Figure

REAL_MODEL = "Qwen3-0.6B"


@dataclass(frozen=True)
class Place:
    """A device and how much is measured on it.

    Attributes:
        device: to measure; a CPU only shows that the check itself works.
        quick: two minutes instead of ten.
        is_tiny: a model and sizes that a CPU can do.
    """

    device: torch.device
    quick: bool
    is_tiny: bool = False

    @cached_property
    def sizes(self) -> ModelSizes:
        """The measured model's."""
        real = find_sizes(REAL_MODEL)
        if not self.is_tiny:
            return real
        small = {"hidden": 64, "intermediate": 128, "vocab": 512, "layers": 2}
        heads = {"heads": 4, "kv_heads": 2, "head_dim": 16}
        return type(real)(**{**vars(real), **small, **heads})

    @property
    def dtype(self) -> torch.dtype:
        """Of weights in decoding, and of products in training."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def is_like_estimates(self) -> bool:
        """Whether the estimates, which are an H100's, mean anything here."""
        return self.device.type == "cuda" and not self.is_tiny

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 FLOP/s; None where it is not known."""
        if self.device.type != "cuda":
            return None
        tflops = peak_tflops(torch.cuda.get_device_name(self.device))
        return None if tflops is None else 1e12 * tflops

    def figure(
        self,
        part: str,
        name: str,
        value: float | None,
        unit: str,
        estimate: float | None = None,
        note: str = "",
    ) -> Figure:
        """A figure of this place; its estimate only where that means something."""
        kept = estimate if self.is_like_estimates else None
        return Figure(part=part, name=name, value=value, unit=unit, estimate=kept, note=note)

    def wait(self) -> None:
        """Returns when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of a piece of work, the device's included."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def median_seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Median over repeats, after one that does not count."""
        work()
        return statistics.median(self.seconds(work) for _ in range(repeats))

    def peak_gib(self) -> float:
        """GiB that torch has allocated at most since `forget_peak`; 0 on CPUs."""
        if self.device.type != "cuda":
            return 0.0
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def forget_peak(self) -> None:
        """Starts another measurement of `peak_gib`."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
