"""Peak memory of a call: the kernel's own high-water mark of this process."""

from collections.abc import Callable
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_rss_mb(run: Callable[[], object]) -> int | None:
    """Largest resident memory of this process while `run` runs, MiB; None where Linux is not."""
    try:
        _CLEAR.write_text("5")  # resets VmHWM: man 5 proc
    except OSError:
        return None
    run()
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) // 1024
