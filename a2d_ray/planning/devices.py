"""Accelerators by name: peak, memory, links, price. What a plan divides by."""

from dataclasses import dataclass

# Dense bf16 TFLOP/s from the data sheets, by a part of the name that CUDA reports; the first that
# fits counts, so a longer name stands before one that it contains.
PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
}

# List prices as remembered of that month; nobody has compared them with the vendors' pages.
PRICES_OF = "2025-06"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        peak_tflops: dense bf16, from the data sheet.
        memory_gib: device memory.
        memory_tbyte_s: its bandwidth, from the data sheet; None: not known.
        link_gbyte_s: to its neighbours in the node, one direction.
        price: US dollars per device and hour, on demand, of `PRICES_OF`, not checked.
        rented_as: the machine whose list price that is.
    """

    peak_tflops: float
    memory_gib: float
    link_gbyte_s: float
    price: float
    rented_as: str
    memory_tbyte_s: float | None = None


DEVICES = {
    "A100-40GB": Device(
        peak_tflops=PEAK_TFLOPS["A100"],
        memory_tbyte_s=1.555,
        memory_gib=40,
        link_gbyte_s=300,
        price=2.75,
        rented_as="AWS p4d.24xlarge / 8",
    ),
    "A100-80GB": Device(
        peak_tflops=PEAK_TFLOPS["A100"],
        memory_tbyte_s=2.039,
        memory_gib=80,
        link_gbyte_s=300,
        price=5.07,
        rented_as="GCP a2-ultragpu-8g / 8",
    ),
    "H100-80GB": Device(
        peak_tflops=PEAK_TFLOPS["H100"],
        memory_tbyte_s=3.35,
        memory_gib=80,
        link_gbyte_s=450,
        price=6.88,
        rented_as="AWS p5.48xlarge / 8",
    ),
    "L4-24GB": Device(
        peak_tflops=PEAK_TFLOPS["L4"],
        memory_tbyte_s=0.3,
        memory_gib=24,
        link_gbyte_s=16,
        price=0.70,
        rented_as="GCP g2-standard-4",
    ),
    "A10G-24GB": Device(
        peak_tflops=PEAK_TFLOPS["A10G"],
        memory_tbyte_s=0.6,
        memory_gib=24,
        link_gbyte_s=16,
        price=1.01,
        rented_as="AWS g5.xlarge",
    ),
}


def find_device(name: str) -> Device:
    """A row of the table.

    Raises:
        ValueError: no such device.
    """
    if name not in DEVICES:
        raise ValueError(
            f"cluster.device={name} is not known: choose from {', '.join(DEVICES)}, and set "
            "cluster.peak_tflops, cluster.memory_gib and cluster.price for another one"
        )
    return DEVICES[name]


def peak_tflops(name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device by the name that CUDA reports, or None where not known."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
