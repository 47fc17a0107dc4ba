"""Signals that a part of the program takes over for a while, and gives back."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


@contextmanager
def handling(number: signal.Signals, handler: Callable[[], None]) -> Iterator[None]:
    """Within it, a signal calls `handler` and nothing else.

    Handlers exist in main threads only: elsewhere (a trial of Ray Tune) it changes nothing.
    """
    if not _in_main_thread():
        yield
        return
    is_over = False

    def handle(*_: object) -> None:
        if is_over:
            signal.signal(number, before)
            signal.raise_signal(number)
        else:
            handler()

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        is_over = True
        if _in_main_thread():  # a generator may be closed by the collector, in any thread
            signal.signal(number, before)


class Interrupt:
    """Whether Ctrl-C was pressed. No `threading.Event`: a handler may find its lock taken by the
    code that it interrupts.

    Attributes:
        is_set: it was.
    """

    is_set = False

    def set(self) -> None:
        """Notes the first one.

        Raises:
            KeyboardInterrupt: it is the second one.
        """
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


def noting_interrupts(interrupt: Interrupt) -> AbstractContextManager[None]:
    """Within it, the first Ctrl-C is noted; a second one raises KeyboardInterrupt.

    An exception alone could be lost: what is raised inside a finalizer or a callback of the
    garbage collector, Python prints and ignores. Where interrupts are ignored (a command in the
    background of a script), they stay so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return nullcontext()
    return handling(signal.SIGINT, interrupt.set)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Within it, the first Ctrl-C waits; it raises KeyboardInterrupt at the end.

    For code that starts processes: an exception inside a hook of `fork` is lost, and leaves locked
    what the hook was about to unlock (the logging module's lock: every other thread that logs
    waits for ever).
    """
    interrupt = Interrupt()
    try:
        with noting_interrupts(interrupt):
            yield
    finally:
        if interrupt.is_set:
            raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
