"""Ending a run early with nothing lost: by a signal to the driver, a file, or a time limit.

The training loop runs in a thread of a Ray worker, where no signal handler can be set. So a
request to stop is a file in the run's directory: the driver writes it when it gets SIGTERM, anybody
else may (``touch runs/NAME/stop``), rank 0 looks for it, and all ranks agree on the step.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from a2d_ray.runs.storage import RunDirectory
from a2d_ray.signals import Interrupt, handling
from a2d_ray.terminal.streams import tell

STOP_FILE = "stop"
STOP_POLL_S = 1.0


@contextmanager
def stop_on_signals(directory: RunDirectory) -> Iterator[None]:
    """Within it, SIGTERM and the first Ctrl-C ask the run to save and stop, instead of ending this
    process. A second Ctrl-C raises KeyboardInterrupt.
    """
    interrupt = Interrupt()

    def stop() -> None:
        interrupt.set()
        request_stop(directory)
        tell("saving and stopping after this step; Ctrl-C again ends at once")

    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with (
        handling(signal.SIGTERM, lambda: request_stop(directory)),
        nullcontext() if is_ignored else handling(signal.SIGINT, stop),
    ):
        yield


def request_stop(directory: RunDirectory) -> None:
    """Asks a run to save and stop after the step that it is in."""
    directory.write(STOP_FILE, b"")


class StopWatch:
    """Rank 0's view of whether to stop.

    Args:
        directory: where the run writes, `storage_path/name`.
        deadline: Unix time before which the run must have saved; None: there is none.
    """

    def __init__(self, directory: RunDirectory, deadline: float | None) -> None:
        self._directory = directory
        self._deadline = deadline
        self._looked_at = 0.0
        self._is_asked = False
        self.save_s = 0.0  # how long the last checkpoint took

    def is_over(self, step_s: float) -> bool:
        """Whether to stop now: asked to, or no time for another step and a checkpoint.

        Args:
            step_s: seconds that the last step took.
        """
        now = time.time()
        if self._deadline is not None and now + 2 * step_s + self.save_s > self._deadline:
            return True
        if not self._is_asked and now - self._looked_at >= STOP_POLL_S:
            self._looked_at = now
            self._is_asked = self._directory.read(STOP_FILE) is not None
        return self._is_asked
