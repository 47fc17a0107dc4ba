"""Signals are noted wherever they arrive, and their handlers come back."""

import gc
import signal
import threading

import pytest

from a2d_ray.signals import Interrupt, handling, interrupts_wait, noting_interrupts

INTERRUPT = signal.SIGINT


def handler():
    return signal.getsignal(INTERRUPT)


class Finalized:
    """Is interrupted when it goes."""

    def __del__(self):
        signal.raise_signal(INTERRUPT)


def in_a_finalizer():
    Finalized()


def in_a_callback_of_the_collector():
    def interrupt(phase, _):
        if phase == "start":
            signal.raise_signal(INTERRUPT)

    gc.callbacks.append(interrupt)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(interrupt)


def in_plain_code():
    signal.raise_signal(INTERRUPT)


PLACES = [in_plain_code, in_a_finalizer, in_a_callback_of_the_collector]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_the_first_interrupt_is_noted_and_the_second_raises(interruptible, place):
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt), noting_interrupts(interrupt):
        place()
        assert interrupt.is_set
        signal.raise_signal(INTERRUPT)
    assert handler() is interruptible


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_an_interrupt_waits_for_the_end(interruptible, place):
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        place()
        steps.append("went on")
    assert steps == ["went on"] and handler() is interruptible
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        place()
        raise OSError("a process that was interrupted, too")
    with interrupts_wait():
        pass


def test_the_handler_comes_back_whatever_happens(interruptible):
    with handling(INTERRUPT, Interrupt().set):
        assert handler() is not interruptible
    assert handler() is interruptible
    with pytest.raises(ValueError, match="mine"), handling(INTERRUPT, Interrupt().set):
        raise ValueError("mine")
    assert handler() is interruptible


def within(context):
    with context:
        yield


@pytest.mark.parametrize("end", ["closed", "collected"])
def test_the_handler_comes_back_when_a_generator_ends_early(interruptible, end):
    steps = within(handling(INTERRUPT, Interrupt().set))
    next(steps)
    assert handler() is not interruptible
    if end == "closed":
        steps.close()
    del steps
    assert handler() is interruptible


def test_what_another_thread_closes_hands_the_next_signal_on(interruptible):
    """As its garbage collector may: handlers cannot be set there."""
    interrupt = Interrupt()
    steps = within(handling(INTERRUPT, interrupt.set))
    next(steps)
    closer = threading.Thread(target=steps.close)
    closer.start()
    closer.join()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(INTERRUPT)
    assert not interrupt.is_set and handler() is interruptible


def test_other_threads_change_nothing(interruptible):
    seen = []

    def look():
        with handling(INTERRUPT, Interrupt().set):
            seen.append(handler())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [interruptible]


def test_interrupts_that_are_ignored_stay_so(interruptible):
    """As those of a command in the background of a script are."""
    interrupt = Interrupt()
    signal.signal(INTERRUPT, signal.SIG_IGN)
    with noting_interrupts(interrupt):
        signal.raise_signal(INTERRUPT)
    assert not interrupt.is_set and handler() is signal.SIG_IGN
