"""What tasks of Ray Data raise, as it was raised."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ray.data import DataContext
from ray.exceptions import RayTaskError

_LOGS = (
    "ray.data.exceptions",
    "ray.data._internal.execution.streaming_executor_state",
)
_RETRIES = re.compile(r"\n?Failed to .* after \d+/\d+ attempts \(total backoff .*", re.DOTALL)


@contextlib.contextmanager
def task_errors() -> Iterator[None]:
    """Datasets made and read in here raise a user's mistake, or the system's error, of a task
    without the task's traceback. Ray Data would log it besides, as a defect of its own.

    Raises:
        ValueError: as a task raised it. Likewise an OSError.
    """
    context = DataContext.get_current()
    before = context.raise_original_map_exception
    context.raise_original_map_exception = True  # else Ray's words stand in place of ours
    logs = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, ValueError | OSError):
            cause.args = tuple(_own_words(cause.args))
            raise cause from error
        raise
    finally:
        context.raise_original_map_exception = before
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _own_words(args: Iterable[Any]) -> Iterator[Any]:
    """What an error was raised with, without what Ray Data adds about retries."""
    for value in args:
        words = _RETRIES.sub("", value) if isinstance(value, str) else value
        if words == value or words:
            yield words
