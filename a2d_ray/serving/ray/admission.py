"""Room for requests at a model: who comes beyond it is refused at once, and told when to return."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from a2d_ray.http.errors import RequestError, overloaded

_NEWEST_WEIGHT = 0.2  # of an answer in the running mean
_LONGEST_RETRY_S = 60


class Admission:
    """Counts the requests at one model.

    Args:
        max_requests: that it runs and lets wait.
        clock: seconds.
    """

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = max_requests
        self._num_requests = 0
        self._clock = clock
        self._mean_s = 0.0

    @property
    def num_requests(self) -> int:
        """Those that hold a place."""
        return self._num_requests

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place inside a ``with`` block.

        Raises:
            RequestError: 429, there is none.
        """
        if self._num_requests >= self._max_requests:
            raise self.refusal()
        self._num_requests += 1
        started = self._clock()
        try:
            yield
            self._count(self._clock() - started)
        finally:
            self._num_requests -= 1

    def refusal(self) -> RequestError:
        """429 whose Retry-After is what an answer takes at present: every place was free by then.

        A fixed second would bring everybody back again and again while answers take many.
        """
        retry_s = min(max(1, math.ceil(self._mean_s)), _LONGEST_RETRY_S)
        return overloaded(
            f"too many requests wait already: try again in {retry_s} s", retry_after_s=retry_s
        )

    def _count(self, seconds: float) -> None:
        if not self._mean_s:
            self._mean_s = seconds
        self._mean_s += _NEWEST_WEIGHT * (seconds - self._mean_s)
