"""Which likelihood requests share a forward, and how many of their draws: by the true size of the
layout, in which only the blocks with targets are noised; in the AR mode, which of them share a
context. No torch.

Everything here is a function of the requests and the contract alone, so that every process that is
given the same list computes the same sums, bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from a2d_ray.data.packing.costs import Streams
from a2d_ray.data.packing.documents import Document
from a2d_ray.evaluation.backends.requests import ScoreRequest
from a2d_ray.models.contract import Contract

MAX_TOKENS = 2048  # of all streams of one forward


@dataclass(frozen=True)
class Cost:
    """Tokens of a forward.

    Attributes:
        shared: clean tokens, run once for all draws (none for MDLM, where all sees all).
        per_draw: noised tokens of the two views of a draw.
    """

    shared: int
    per_draw: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.shared + other.shared, self.per_draw + other.per_draw)

    def tokens(self, num_draws: int) -> int:
        """Tokens of a forward with `num_draws` draws."""
        return self.shared + num_draws * self.per_draw


def plan_batches(
    requests: Sequence[ScoreRequest], contract: Contract | None, *, max_tokens: int = MAX_TOKENS
) -> Iterator[list[int]]:
    """Indices of the requests that share a forward: neighbours in length, and within `max_tokens`
    together; a row or a request that exceeds them is alone.

    Args:
        requests: all of one kind.
        contract: of the model; None: not known, which matters for NELBOs only.
        max_tokens: of a forward, all streams or padding included.
    """
    if not requests:
        return
    if requests[0].likelihood == "ar":
        yield from _plan_rows(requests, max_tokens)
    else:
        assert contract is not None, "whoever asks for a NELBO tells how the model is used"
        yield from _plan_draws(requests, contract, max_tokens)


@dataclass
class SharedRow:
    """A row of a forward in the AR mode.

    Attributes:
        num_tokens: of the context, and of each continuation without its last one.
        members: indices of the requests.
    """

    num_tokens: int
    members: list[int] = field(default_factory=list)


def shared_rows(
    requests: Sequence[ScoreRequest], *, max_tokens: float = math.inf
) -> list[SharedRow]:
    """Rows within `max_tokens`: a context is run once for all continuations that are not longer."""
    rows: list[SharedRow] = []
    open_rows: dict[tuple[int, ...], SharedRow] = {}
    for index, request in enumerate(requests):
        context = request.context_ids
        num_own = len(request.continuation) - 1
        is_shared = num_own < len(context)
        row = open_rows.get(context) if is_shared else None
        if row is None or row.num_tokens + num_own > max_tokens:
            row = SharedRow(len(context))
            rows.append(row)
            if is_shared:
                open_rows[context] = row
        row.members.append(index)
        row.num_tokens += num_own
    return rows


def _plan_rows(requests: Sequence[ScoreRequest], max_tokens: int) -> Iterator[list[int]]:
    batch: list[SharedRow] = []
    rows = shared_rows(requests, max_tokens=max_tokens)
    for row in sorted(rows, key=lambda row: row.num_tokens):
        if batch and (len(batch) + 1) * row.num_tokens > max_tokens:
            yield [index for each in batch for index in each.members]
            batch = []
        batch.append(row)
    if batch:
        yield [index for each in batch for index in each.members]


def _plan_draws(
    requests: Sequence[ScoreRequest], contract: Contract, max_tokens: int
) -> Iterator[list[int]]:
    """As many draws in a forward, and the tokens of all streams counted."""
    draws = [needed_draws(request, contract) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: (draws[i], requests[i].num_tokens, i))
    batch: list[int] = []
    used = Cost(0, 0)
    for index in order:
        cost = _cost(requests[index], contract)
        is_alike = bool(batch) and draws[index] == draws[batch[0]]
        if batch and not (is_alike and (used + cost).tokens(draws[index]) <= max_tokens):
            yield batch
            batch = []
            used = Cost(0, 0)
        batch.append(index)
        used += cost
    if batch:
        yield batch


def is_exact(request: ScoreRequest, contract: Contract) -> bool:
    """Whether every block has one target, so that each draw gives the exact chain rule."""
    if contract.objective == "bd3lm" and contract.block_size == 1:
        return True
    return len(request.continuation) == 1 and not request.is_complete


def needed_draws(request: ScoreRequest, contract: Contract) -> int:
    """How many of the draws that are asked for are run."""
    return 1 if is_exact(request, contract) else request.num_draws


def draws_per_forward(requests: Sequence[ScoreRequest], contract: Contract) -> int:
    """How many draws of a batch run together. Behind a long context, the noised tokens may be as
    many as the shared ones, so that the context is not run again for every draw."""
    cost = sum((_cost(request, contract) for request in requests), Cost(0, 0))
    room = max(MAX_TOKENS - cost.shared, cost.shared)
    return max(1, room // cost.per_draw)


def _cost(request: ScoreRequest, contract: Contract) -> Cost:
    one, two = (_streams(contract, views).cost(_document(request)) for views in (2, 4))
    return Cost(shared=2 * one - two, per_draw=two - one)


def _streams(contract: Contract, views: int) -> Streams:
    return Streams(
        objective=contract.objective or "mdlm",  # `Likelihood` refuses None
        block_grid=contract.block_grid,
        block_size=contract.block_size,
        views=views,
    )


def _document(request: ScoreRequest) -> Document:
    segments = tuple(segment for segment in request.context if segment)
    return Document(
        segments=(*segments, request.continuation),
        is_target=(*(False for _ in segments), True),
        is_complete=request.is_complete,
        answer=0,
    )
