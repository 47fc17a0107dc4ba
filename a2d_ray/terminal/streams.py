"""The terminal of a job is its own: what libraries print goes to a log file.

Libraries print by every way there is: ``print``, logging, C++ below Python, child processes. So the
file takes the place of the process's standard output and error, and our own lines go to copies of
what these were before.
"""

import contextlib
import faulthandler
import io
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from a2d_ray.terminal.notices import Notices

LOG_VARIABLE = "A2D_LOG_DIR"


class _Kept:
    """What this process's standard output and error were before a job took them over."""

    output: TextIO | None = None
    errors: TextIO | None = None
    log: Path | None = None


def output() -> TextIO:
    """Where results go: standard output."""
    return _Kept.output or sys.stdout


def errors() -> TextIO:
    """Where progress, warnings and errors go: standard error."""
    return _Kept.errors or sys.stderr


def console(**options: Any) -> Any:
    """A `rich.console.Console` on standard output."""
    from rich.console import Console

    return Console(file=output(), **options)


def say(*lines: object) -> None:
    """Prints lines of a result to standard output."""
    with _bars_aside():
        output().write("".join(f"{line}\n" for line in lines))
        output().flush()


def tell(*lines: object) -> None:
    """Prints lines about what happens to standard error."""
    with _bars_aside():
        errors().write("".join(f"{line}\n" for line in lines))
        errors().flush()


def log_path() -> Path | None:
    """The log file, if anything stands in it."""
    path = _Kept.log
    return path if path is not None and path.exists() and path.stat().st_size else None


def keep_to_ourselves(name: str) -> None:
    """From here to the end of the process, only our own lines reach the terminal.

    It does nothing where standard output and error are not the process's own (under pytest).

    Args:
        name: of the job, for the log file, which lies in A2D_LOG_DIR or the system's place for
            temporary files.
    """
    if _Kept.log is not None or not _are_own():
        return
    path = _log_directory() / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _Kept.log = path
    _Kept.output = _copy(sys.stdout)
    _Kept.errors = _copy(sys.stderr)
    notices = Notices()
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    sys.stdout = _Chatter(1, notices)
    sys.stderr = _Chatter(2, notices)
    faulthandler.enable(_Kept.errors)


def end_log() -> None:
    """Removes a log in which nothing stands."""
    if _Kept.log is not None and log_path() is None:
        with contextlib.suppress(OSError):
            _Kept.log.unlink()


def show_own_log() -> logging.Handler:
    """Our loggers' lines reach the user: what happens, and warnings.

    Returns:
        The handler, which `hide_own_log` takes away.
    """
    logger = logging.getLogger("a2d_ray")
    handler = _OwnLines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handler


def hide_own_log(handler: logging.Handler) -> None:
    """Undoes `show_own_log`."""
    logger = logging.getLogger("a2d_ray")
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


class _OwnLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        tell(f"warning: {text}" if record.levelno >= logging.WARNING else text)
        if record.exc_info:
            sys.stderr.write(f"{logging.Formatter().formatException(record.exc_info)}\n")


class _Chatter(io.TextIOWrapper):
    """A standard stream as libraries see it: the log file. Notices among it are shown, too."""

    def __init__(self, number: int, notices: Notices) -> None:
        raw = os.fdopen(number, "wb", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._notices = notices
        self._lock = threading.Lock()
        self._line = ""

    def write(self, text: str) -> int:
        """Writes to the log."""
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            self._line = self._line[-4096:]
        for line in lines:
            if (notice := self._notices.find(line)) is not None:
                tell(f"warning: {notice}")
        return super().write(text)


def _are_own() -> bool:
    """Whether ``sys.stdout`` and ``sys.stderr`` are the process's own, which nobody replaced."""
    try:
        return (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (OSError, ValueError, AttributeError):  # closed, or kept in memory
        return False


def _copy(stream: TextIO) -> TextIO:
    """The same place under another descriptor, which children do not inherit."""
    stream.flush()
    raw = os.fdopen(os.dup(stream.fileno()), "wb")
    return io.TextIOWrapper(
        raw, encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )


def _log_directory() -> Path:
    """Where logs lie: a directory that nobody else can read."""
    named = os.environ.get(LOG_VARIABLE)
    path = Path(named) if named else Path(tempfile.gettempdir()) / f"a2d-ray-{os.getuid()}"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_uid == os.getuid() and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="a2d-ray-"))


@contextlib.contextmanager
def _bars_aside() -> Iterator[None]:
    """A progress bar on the terminal makes room for a line."""
    if "tqdm" not in sys.modules or not errors().isatty():
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=errors()):
        yield
