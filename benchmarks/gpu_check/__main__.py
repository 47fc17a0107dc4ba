"""`make gpu-check`: measures a GPU and prints one table.

Usage: python -m benchmarks.gpu_check [--quick] [--device cuda:0] [--tiny] [--parts machine,...]
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.gpu_check.decoding import measure_decoding
from benchmarks.gpu_check.figures import Figure, format_table
from benchmarks.gpu_check.machine import measure_machine
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.training import measure_training

PARTS: dict[str, Callable[[Place], Iterator[Figure]]] = {
    "machine": measure_machine,
    "training": measure_training,
    "decoding": measure_decoding,
}


def measured(place: Place, parts: list[str]) -> Iterator[Figure]:
    """The figures of some parts; one that fails becomes a figure without a value."""
    for part in parts:
        try:
            yield from PARTS[part](place)
        except (ImportError, RuntimeError, ValueError) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            yield place.figure(part, "the rest was skipped", None, "", note=text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="what is measured")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of ten")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to try the check itself")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", help="JSON lines are written here")
    args = parser.parse_args()
    parts = args.parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"--parts={unknown[0]} is not known: choose from {', '.join(PARTS)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device=cpu --tiny tries the check itself")
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), "torch", torch.__version__)
    figures = []
    for figure in measured(Place(device, args.quick, args.tiny), parts):
        figures.append(figure)
        print(figure.line(), file=sys.stderr, flush=True)
    if args.output:
        Path(args.output).write_text("".join(figure.line() + "\n" for figure in figures))
    print(format_table(figures))


if __name__ == "__main__":
    main()
