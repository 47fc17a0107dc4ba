"""``a2d JOB [CONFIG.yaml] [key=value ...]``: the jobs for those who installed the package."""

import difflib
import sys

from a2d_ray import __version__
from a2d_ray.jobs.run import run_job
from a2d_ray.jobs.table import JOBS

_OTHERS = {
    "doctor": "versions, devices, Ray, disk, memory, and what will not work here",
    "completion": "completion of jobs and keys: a2d completion bash (or zsh)",
}


def main() -> None:
    """Runs the job that the first argument names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        sys.stdout.write(overview())
    elif name == "--version":
        sys.stdout.write(f"a2d-ray {__version__}\n")
    elif name in JOBS:
        sys.argv = [f"a2d {name}", *rest]
        run_job(name)
    elif name == "doctor":
        from a2d_ray.jobs.doctor import examine

        examine()
    elif name == "completion":
        from a2d_ray.jobs.completion import complete

        complete(rest)
    else:
        sys.stderr.write(f"error: there is no job {name!r}{_near(name)}\n")
        raise SystemExit(2)


def overview() -> str:
    """What ``a2d --help`` prints."""
    lines = [f"  {name:<16}{job.summary}" for name, job in JOBS.items()]
    others = [f"  {name:<16}{summary}" for name, summary in _OTHERS.items()]
    return "\n".join(
        [
            "usage: a2d JOB [CONFIG.yaml] [key=value ...] [--dry-run] [--verbose] [--help]",
            "",
            *lines,
            "",
            *others,
            "",
            "a2d JOB --help explains every key. CONFIG.yaml is a file of yours, or one that comes",
            "with the package, such as sft_bd3lm_alpaca.yaml.",
            "",
        ]
    )


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), [*JOBS, *_OTHERS], n=1)
    return f": did you mean {near[0]}?" if near else ": a2d --help lists them"


if __name__ == "__main__":
    main()
