"""Token sequences that fit the model's positions: cut on the left, or cut into windows."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from a2d_ray.evaluation.backends.requests import ScoreRequest
from a2d_ray.generation.decoding.canvas import keep_last


def fit(request: ScoreRequest, max_length: int) -> ScoreRequest:
    """The request with its context cut on the left, as the harness's own models do.

    The AR mode does not run the last token, so one more fits.

    Raises:
        ValueError: a continuation that is longer than the model alone.
    """
    if len(request.continuation) > max_length:
        raise ValueError(
            f"a continuation of {len(request.continuation)} tokens does not fit max_length "
            f"({max_length})"
        )
    longest = max_length + (request.likelihood == "ar")
    return replace(request, context=keep_last(request.context, longest - len(request.continuation)))


def rolling_windows(ids: tuple[int, ...], max_length: int) -> Iterator[ScoreRequest]:
    """A text as requests that predict each token once: the first `max_length` tokens, then half
    a window at a time behind the half window before it."""
    stride = max(1, max_length // 2)
    edges = [0, *range(max_length, len(ids), stride), len(ids)]
    for start, stop in pairwise(edges):
        before = ids[max(0, start - (max_length - stride)) : start]
        if ids[start:stop]:
            yield ScoreRequest(context=(before,) if before else (), continuation=ids[start:stop])


def ar_windows(ids: tuple[int, ...], max_length: int, prefix_id: int) -> Iterator[ScoreRequest]:
    """A text as the harness's own models read it: whole windows behind one token of context, the
    first behind `prefix_id`; the last window is full, with more context."""
    windows = get_rolling_token_windows(list(ids), prefix_id, max_length, context_len=1)
    for context, continuation in map(make_disjoint_window, windows):
        yield ScoreRequest(
            context=(tuple(context),), continuation=tuple(continuation), likelihood="ar"
        )
