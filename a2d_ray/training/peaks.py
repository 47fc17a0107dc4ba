"""Peaks of accelerators: what the MFU and a plan divide by. No torch here."""

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


def peak_tflops(name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device by the name that CUDA reports, or None where not known."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
