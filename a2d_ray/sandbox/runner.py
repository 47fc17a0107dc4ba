"""Runs a model's code where it can do no harm: namespaces, a root of its own, no network, limits.

Needs Linux with namespaces: as root, or where unprivileged user namespaces are allowed. Where the
kernel allows neither, nothing is run. What happens inside is in `jail.py`, which the interpreter
of the sandbox runs and which imports the standard library alone.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

from a2d_ray.sandbox.jail import TIMEOUT_CODE

JAIL = Path(__file__).with_name("jail.py")
MAX_OUTPUT = 64 * 1024  # bytes that are read


class SandboxError(ValueError):
    """This machine does not isolate; nothing was run."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What code may use.

    Attributes:
        seconds: wall time; CPU time of a process is limited to the same.
        memory_mb: address space of a process; memory that outlives a mapping (System V, memfd, a
            file system of one's own) is denied, so all together use at most `num_processes` times
            this, and `disk_mb`.
        num_processes: processes and threads.
        disk_mb: files, which lie in memory and are gone afterwards.
    """

    seconds: float = 10.0
    memory_mb: int = 512
    num_processes: int = 8
    disk_mb: int = 16


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How code ended.

    Attributes:
        is_ok: it ran to its end (an early exit is not enough).
        reason: ``ok``, ``timeout``, or the end of the error output.
    """

    is_ok: bool
    reason: str


def run_code(code: str, limits: Limits | None = None) -> Execution:
    """Runs Python in a sandbox; it is ok if it ends without an error.

    The code sees: an interpreter with the standard library, read only; an empty directory; no
    network, no other process, no environment.

    Raises:
        SandboxError: the kernel allows no isolation.
    """
    check_isolation()
    return _run(code, limits or Limits())


@cache
def check_isolation() -> None:
    """Tries the sandbox once.

    Raises:
        SandboxError: why it does not work here; the code of a model must not be run then.
    """
    outcome = _run("pass", Limits(seconds=30))
    if not outcome.is_ok:
        raise SandboxError(
            "this machine cannot isolate a model's code, so it is not run: run as root, or allow "
            f"unprivileged user namespaces (sysctl user.max_user_namespaces): {outcome.reason}"
        )


def _run(code: str, limits: Limits) -> Execution:
    sign = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="a2d-jail-") as root:
        os.chmod(root, 0o755)
        order = {"root": root, "prefixes": _prefixes(), "limits": asdict(limits), "sign": sign}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            # Files, not pipes: the limit on file sizes holds for what the code prints, too.
            process = subprocess.Popen(
                [_interpreter(), "-I", "-S", str(JAIL)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                cwd="/",
            )
            try:
                process.communicate(f"{json.dumps(order)}\n{code}".encode(), limits.seconds + 5)
            except subprocess.TimeoutExpired:
                return Execution(is_ok=False, reason="timeout")
            finally:
                _kill(process)
            printed = _tail(out)
            error = _tail(err).strip()
    if process.returncode == 0 and printed.endswith(sign):
        return Execution(is_ok=True, reason="ok")
    if process.returncode == TIMEOUT_CODE:
        return Execution(is_ok=False, reason="timeout")
    return Execution(is_ok=False, reason=error[-500:] or f"exit code {process.returncode}")


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_OUTPUT))
    return file.read().decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the launcher's session; the kernel ends everything in its process namespace."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _interpreter() -> str:
    return os.path.realpath(sys.executable)


def _prefixes() -> list[str]:
    """Directories that the interpreter needs, to be seen read only."""
    wanted = ["/usr", "/lib", "/lib64", "/bin", os.path.realpath(sys.base_prefix)]
    return [path for path in dict.fromkeys(wanted) if os.path.isdir(path)]
