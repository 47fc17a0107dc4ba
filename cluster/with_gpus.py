"""Brings GPU machines, runs a command, lets them go: python cluster/with_gpus.py N COMMAND ...

For clusters of `ray up` whose machines come and go. Asks the autoscaler for N GPUs, waits until
they have joined, runs the command, and takes the request back whatever happens, so that idle
machines end.
"""

import signal
import subprocess
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources

WAIT_S = 1800


def main() -> int:
    """Runs the command; returns its exit code."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        print("usage: python cluster/with_gpus.py NUM_GPUS COMMAND ...", file=sys.stderr)
        return 2
    num_gpus = int(sys.argv[1])
    command = sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `ray job stop`
    ray.init()
    try:
        request_resources(bundles=[{"GPU": 1}] * num_gpus)
        _wait_for(num_gpus)
        return subprocess.run(command, check=False).returncode
    finally:
        request_resources(bundles=[])


def _wait_for(num_gpus: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while (there := int(ray.cluster_resources().get("GPU", 0))) < num_gpus:
        if time.monotonic() > deadline:
            sys.exit(
                f"after {WAIT_S} s the cluster has {there} of {num_gpus} GPUs: see `ray status`"
            )
        print(f"waiting for GPUs: {there} of {num_gpus}", flush=True)
        time.sleep(10)


if __name__ == "__main__":
    sys.exit(main())
