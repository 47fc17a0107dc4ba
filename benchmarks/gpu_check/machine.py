"""Ceilings of the machine: products, copies, launches, and plans of attention."""

from collections.abc import Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from a2d_ray.training.toolchain import check_toolchain
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.place import Place

PART = "machine"
_PRODUCT, _TINY_PRODUCT = 8192, 256
_COPY_BYTES, _TINY_COPY_BYTES = 600 * 10**6, 10**6
_NUM_ADDS = 1_000


def measure_machine(place: Place) -> Iterator[Figure]:
    """Yields the figures of this part."""
    if place.device.type == "cuda":
        yield _toolchain(place)
    yield _product(place)
    yield from _copies(place)
    yield _launch(place)
    yield _attention_plan(place)


def _toolchain(place: Place) -> Figure:
    problem = ""
    try:
        check_toolchain()
    except RuntimeError as error:
        problem = str(error)
    return place.figure(PART, "compiler and headers are there", float(not problem), "", 1, problem)


def _product(place: Place) -> Figure:
    size = _TINY_PRODUCT if place.is_tiny else _PRODUCT
    a = torch.randn(size, size, dtype=place.dtype, device=place.device)
    seconds = place.median_seconds(lambda: a @ a, 5)
    return place.figure(PART, f"product {size}^3", 2 * size**3 / seconds / 1e12, "TFLOP/s", 640)


def _copies(place: Place) -> Iterator[Figure]:
    size = _TINY_COPY_BYTES if place.is_tiny else _COPY_BYTES
    there = torch.zeros(size, dtype=torch.uint8, device=place.device)
    seconds = place.median_seconds(there.clone, 5)
    yield place.figure(PART, "copy on the device", 2 * size / seconds / 1e12, "TB/s", 2.8)
    pageable = torch.zeros(size, dtype=torch.uint8)
    seconds = place.median_seconds(lambda: pageable.copy_(there), 3)
    yield place.figure(PART, "device to host, pageable", size / seconds / 1e9, "GB/s", 4)
    if place.device.type == "cuda":
        pinned = pageable.pin_memory()
        seconds = place.median_seconds(lambda: pinned.copy_(there), 3)
        yield place.figure(PART, "device to host, pinned", size / seconds / 1e9, "GB/s", 50)


def _launch(place: Place) -> Figure:
    one = torch.zeros(1, device=place.device)

    def adds() -> None:
        for _ in range(_NUM_ADDS):
            one.add_(1)

    seconds = place.median_seconds(adds, 3)
    return place.figure(PART, "tiny add", 1e6 * seconds / _NUM_ADDS, "us", 5.5)


def _attention_plan(place: Place) -> Figure:
    """What a number of keys costs when it comes first; cuDNN plans for every one."""
    heads, width = place.sizes.heads, place.sizes.head_dim

    def attend(num_keys: int) -> None:
        query = torch.zeros(1, heads, 32, width, dtype=place.dtype, device=place.device)
        key = torch.zeros(1, heads, num_keys, width, dtype=place.dtype, device=place.device)
        scaled_dot_product_attention(query, key, key)

    place.median_seconds(lambda: attend(256), 1)
    first = place.seconds(lambda: attend(333))
    again = place.seconds(lambda: attend(333))
    return place.figure(
        PART, "attention, first call at a number of keys", 1e3 * (first - again), "ms", 30
    )
