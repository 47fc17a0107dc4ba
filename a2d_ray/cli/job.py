"""How a job starts, prints and ends."""

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from a2d_ray.config.errors import ConfigError, OptionError
from a2d_ray.terminal.streams import (
    end_log,
    errors,
    hide_own_log,
    keep_to_ourselves,
    log_path,
    output,
    show_own_log,
    tell,
)

SHOWN_OF_A_CRASH = 20  # last lines of a traceback; the log has all


def run(
    main: Callable[[], None], *, name: str = "job", resume: str = "", is_verbose: bool = False
) -> None:
    """Runs a job; a user's mistake becomes one clear message and exit code 2.

    Args:
        main: the job.
        name: of the job, for its log.
        resume: how an interrupted one goes on; empty: there is nothing to go on with.
        is_verbose: what libraries print is shown, not kept in a log file.
    """
    if not is_verbose:
        keep_to_ourselves(name)
    own_log = show_own_log()
    needs_log = True
    try:
        with _interruptible():
            _run_with_reader(main)
        needs_log = _has_ray()
    except ValueError as error:
        tell(f"error: {error}")
        is_clear = isinstance(error, ConfigError | OptionError)
        if not is_clear:
            _log_traceback()
        raise SystemExit(2) from (None if is_clear else error)
    except KeyboardInterrupt:
        needs_log = False
        _end_quietly()
        tell(f"interrupted; to go on: {resume}" if resume else "interrupted")
        raise SystemExit(130) from None
    except SystemExit:
        needs_log = _has_ray()
        raise
    except Exception:
        lines = _log_traceback()
        tell(*lines[-SHOWN_OF_A_CRASH:])
        raise SystemExit(1) from None
    finally:
        hide_own_log(own_log)
        if needs_log and (path := log_path()) is not None:
            tell(f"log: {path}")
        end_log()


def _has_ray() -> bool:
    return "ray" in sys.modules


def _log_traceback() -> list[str]:
    """Lines of the traceback of what is raised; they are in the log, too."""
    text = traceback.format_exc().rstrip()
    if errors() is not sys.stderr:
        sys.stderr.write(f"{text}\n")
    return text.splitlines()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, where interrupts are not ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # in the background of a script
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_quietly() -> None:
    """Stops Ray after an interrupt; another one ends the process at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(130)

    before: Any = signal.signal(signal.SIGINT, leave)
    try:
        if _has_ray():
            import ray

            ray.shutdown()
    finally:
        signal.signal(signal.SIGINT, before)


def _run_with_reader(main: Callable[[], None]) -> None:
    """Ends quietly where the reader of the output goes away, as `head` does."""
    try:
        try:
            main()
        finally:
            output().flush()
    except BrokenPipeError:
        if _has_reader():
            raise  # another pipe broke
        os.dup2(os.open(os.devnull, os.O_WRONLY), output().fileno())  # for Python's last flush
        raise SystemExit(0) from None


def _has_reader() -> bool:
    """Whether somebody still reads what is printed."""
    poller = select.poll()
    poller.register(output(), select.POLLOUT)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
