"""What tasks of Ray Data raise, as it was raised."""

import contextlib
import logging
from collections.abc import Iterator

from ray.data import DataContext
from ray.exceptions import RayTaskError

_LOGS = (
    "ray.data.exceptions",
    "ray.data._internal.execution.streaming_executor_state",
)


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
            raise cause from error
        raise
    finally:
        context.raise_original_map_exception = before
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
