"""Runs a job by its name."""

import os
import signal
import sys
from types import FrameType


def run_job(name: str) -> None:
    """Runs a job with the process's arguments, and exits with its code.

    Args:
        name: a key of `a2d_ray.jobs.table.JOBS`.
    """
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not is_ignored:
        signal.signal(signal.SIGINT, _leave)  # an import would end in a traceback
    from functools import partial
    from importlib import import_module

    from a2d_ray.cli.job import run
    from a2d_ray.jobs.table import JOBS
    from a2d_ray.runs.environment import set_environment

    set_environment()  # before torch is imported
    job = JOBS[name]
    module = import_module(f"a2d_ray.jobs.{job.module or name}")
    main = partial(module.main, name) if job.module else module.main
    is_verbose = "--verbose" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--verbose"]
    if not is_ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run(main, name=name, resume=job.resume, is_verbose=is_verbose)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
