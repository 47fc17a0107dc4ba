"""Python commands, measured by their CPU time, which other work on the machine hardly changes."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code, output, error output, and seconds of CPU time."""

    code: int
    out: str
    err: str
    cpu_s: float


def run_python(*args: str) -> Done:
    """Runs ``python ARGS`` at the root of the repository."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *args], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process.stdout as output:
            out = output.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        err = errors.read()
    return Done(process.returncode, out, err, usage.ru_utime + usage.ru_stime)
