"""How a job is called, for every text that names one."""

import sys
from pathlib import Path

_CLONE = Path(__file__).parents[2]
_TARGETS = {"quickstart": "make quickstart"}  # of the clone's Makefile


def command_of(job: str) -> str:
    """The command of a job, as the user calls jobs.

    Args:
        job: its name.

    Returns:
        ``a2d NAME`` to who came through ``a2d``, or has no clone; else the program's own form.
    """
    came_through_a2d = sys.argv[0].startswith("a2d ")
    if came_through_a2d or not (_CLONE / "jobs" / f"{job}.py").is_file():
        return f"a2d {job}"
    return _TARGETS.get(job, f"python jobs/{job}.py")
