"""A command in a terminal of its own: what it shows, and what is typed."""

import os
import pty
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path

CTRL_C = b"\x03"


class InTerminal:
    """A process whose terminal we are.

    Attributes:
        text: what it has shown so far.
    """

    def __init__(self, command: Sequence[str], cwd: Path, environ: dict[str, str]) -> None:
        self.text = ""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # pytest may run where it is ignored
            os.chdir(cwd)
            os.execvpe(command[0], list(command), environ)

    def type(self, keys: bytes) -> None:
        """Types."""
        os.write(self._fd, keys)

    def wait_for(self, words: str, *, seconds: float = 200) -> None:
        """Returns when these words are shown."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < deadline and self._read(), self.text

    def end(self, *, seconds: float = 200) -> int:
        """Reads until the process ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.text
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        """Whether the process may show more."""
        if not select.select([self._fd], [], [], 0.2)[0]:
            return True
        try:
            found = os.read(self._fd, 65536)
        except OSError:  # Linux's word for: nobody holds the other end any more
            return False
        self.text += found.decode(errors="replace")
        return bool(found)
