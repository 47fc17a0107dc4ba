"""How many tokens to draft, and behind which of them to prepare the next drafts.

A round of a request verifies its D drafts and prepares drafts for the next round: behind the last
one only (linear), behind each of them (tree), or behind the most likely ends of the accepted run.
Where the run ends elsewhere, the next round has no drafts (it is *cold*). p is the chance that one
more draft is accepted.

Source: TiDAR (arXiv 2511.08923) for verifying and drafting in one forward.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from a2d_ray.generation.decoding.params import SamplingParams

MAX_AUTO_DRAFTS = 8
LEAST_GAIN = 1.1  # of drafts over none: an answer begins without, and drops those behind its end
PROBED_ROUNDS = 32
MAX_MASKS = 64  # of one request in a round, where the engine decides
CALIBRATED = (1, 4, 8, 16, 32, 64, 128)  # tokens in a forward


@dataclass(frozen=True)
class DraftPlan:
    """What a request drafts in a round.

    Attributes:
        num_drafts: tokens that each group of masks drafts.
        ends: behind how many of its drafts, accepted, a group stands; ascending.
    """

    num_drafts: int = 0
    ends: tuple[int, ...] = ()


class Costs:
    """Seconds of a round by its tokens, between measured points by straight lines.

    Args:
        seconds: of the layers, by tokens in a forward.
        head_seconds: of the language-model head, by rows.
        draw_s: of drawing a row's token; the most likely one costs nothing.
        request_s: of each request but the first, beside its tokens: on CPUs each attends apart.
        most_spare_rows: as in `ModelRunner`.
    """

    def __init__(
        self,
        seconds: Mapping[int, float],
        head_seconds: Mapping[int, float],
        *,
        draw_s: float = 0.0,
        request_s: float = 0.0,
        most_spare_rows: int = 0,
    ) -> None:
        self._layers = _Line(seconds)
        self._head = _Line(head_seconds)
        self._draw_s = draw_s
        self._request_s = request_s
        self._most_spare_rows = most_spare_rows

    def round_s(
        self,
        num_tokens: float,
        num_verified: float,
        num_drafted: float,
        num_spare: float,
        *,
        num_requests: int,
        is_drawn: bool,
    ) -> float:
        """Seconds of a round: its forward, the head for verification, the head for drafts.

        Args:
            num_tokens: in the forward, of all requests.
            num_verified, num_drafted: of them, rows whose logits decide.
            num_spare: rows that may become drafts.
            num_requests: in the round.
            is_drawn: tokens are drawn, with noise over the whole vocabulary for each row.
        """
        seconds = self._layers(num_tokens) + self._request_s * (num_requests - 1)
        if num_spare <= self._most_spare_rows:
            seconds += self._head(num_verified + num_spare)
        else:
            seconds += self._head(num_verified) + self._head(num_drafted)
        return seconds + (self._draw_s * (num_verified + num_drafted) if is_drawn else 0.0)


class _Line:
    """Piecewise linear, rising; goes on as steeply as between the last two points."""

    def __init__(self, points: Mapping[int, float]) -> None:
        self._x = sorted(points)
        most = 0.0
        self._y = [most := max(most, points[x]) for x in self._x]

    def __call__(self, x: float) -> float:
        at = min(max(bisect_right(self._x, x), 1), len(self._x) - 1)
        x0, x1 = self._x[at - 1 : at + 1]
        y0, y1 = self._y[at - 1 : at + 1]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@dataclass(kw_only=True)
class Acceptance:
    """Running estimate of p.

    Attributes:
        accepted, refused: drafts, the older the less they count.
        decay: what those of earlier rounds keep of their weight in each round.
        num_idle: rounds in which drafts did not pay.
    """

    accepted: float = 6.0
    refused: float = 2.0
    decay: float = 0.99
    num_idle: int = 0

    @property
    def p(self) -> float:
        """Chance that one more draft is accepted."""
        return self.accepted / (self.accepted + self.refused)

    def count(self, num_accepted: int, num_refused: int) -> None:
        """Notes how far a run of drafts came."""
        if num_accepted or num_refused:
            self.accepted = self.accepted * self.decay + num_accepted
            self.refused = self.refused * self.decay + num_refused

    def of_a_request(self) -> "Acceptance":
        """Where a request begins: at the same p, which it leaves slowly.

        Answers are short, and a run of easy tokens says little about the next ones.
        """
        weight = 32.0
        return Acceptance(accepted=weight * self.p, refused=weight * (1 - self.p), decay=0.98)


@dataclass(kw_only=True)
class Drafter:
    """Plans drafts for the requests of one engine.

    Attributes:
        measure: measures the model's costs; asked when a request leaves the choice to the engine.
        acceptance: of all requests to the model: where a new one begins.
        num_running: requests in the present round.
    """

    measure: Callable[[], Costs]
    acceptance: Acceptance
    num_running: int = 1

    def plan(self, params: SamplingParams, num_held: int, own: Acceptance) -> DraftPlan:
        """What to draft now.

        Args:
            params: of the request; rule ``ar`` drafts nothing.
            num_held: drafts that this round verifies.
            own: the request's acceptance.
        """
        if params.rule == "ar":
            return DraftPlan()
        if params.draft_tokens is not None and params.draft_shape != "auto":
            first = 0 if params.draft_shape == "tree" else num_held
            return DraftPlan(params.draft_tokens, tuple(range(first, num_held + 1)))
        p = round(own.p, 2)
        plan = partial(best_plan, self.measure(), self.num_running, is_drawn=params.temperature > 0)
        best = plan(p, params.draft_tokens, params.draft_shape)
        if best.num_drafts == 0:
            return self._probe(plan(0.95), num_held, own)
        if params.draft_shape == "linear":
            ends = [num_held]
        else:
            ends = sorted(_likely_ends(num_held, p)[: len(best.ends)])
        return replace(best, ends=tuple(ends))

    def _probe(self, hopeful: DraftPlan, num_held: int, own: Acceptance) -> DraftPlan:
        """No drafts, but for a few now and then: without any, p would stay what it was.

        Args:
            hopeful: the plan if nearly all drafts were accepted.
        """
        own.num_idle += 1
        is_due = own.num_idle % PROBED_ROUNDS == 0
        if is_due and hopeful.num_drafts:
            return DraftPlan(2, (num_held,))
        return DraftPlan()


def max_masks(params: SamplingParams) -> int:
    """Most masks and drafts that a request brings to a round, besides known tokens."""
    if params.rule == "ar":
        return 0
    if params.draft_tokens is None or params.draft_shape == "auto":
        return max(MAX_MASKS, 2 * (params.draft_tokens or 0) + 1)
    most = params.draft_tokens + 1
    return most * (most if params.draft_shape == "tree" else 1)


def _likely_ends(num_drafts: int, p: float) -> list[int]:
    """Lengths of the accepted run, 0 to `num_drafts`, the most likely first."""
    chances = [p**c * (1 - p) for c in range(num_drafts)] + [p**num_drafts]
    return sorted(range(num_drafts + 1), key=lambda c: -chances[c])


@lru_cache(maxsize=4096)
def best_plan(
    costs: Costs,
    num_running: int,
    p: float,
    num_drafts: int | None = None,
    shape: str = "auto",
    *,
    is_drawn: bool = False,
) -> DraftPlan:
    """The plan of most tokens per second, if every request of the round has the same one.

    Args:
        costs: of the model.
        num_running: requests.
        p: chance that one more draft is accepted.
        num_drafts: drafts of a group; None: as many as pay, at most `MAX_AUTO_DRAFTS`.
        shape: as in `RuleOptions.draft_shape`.
        is_drawn: tokens are drawn (temperature above 0).
    """
    best, best_rate = DraftPlan(), 0.0
    round_s = partial(costs.round_s, num_requests=num_running, is_drawn=is_drawn)
    for size in range(MAX_AUTO_DRAFTS + 1) if num_drafts is None else (num_drafts,):
        for num_ends in _numbers_of_ends(size, shape):
            rate = _rate(round_s, num_running, p, size, num_ends)
            rate /= LEAST_GAIN if size else 1.0
            if rate > best_rate:
                ends = sorted(_likely_ends(size, p)[:num_ends])
                best, best_rate = DraftPlan(size, tuple(ends)), rate
    return best


def _numbers_of_ends(num_drafts: int, shape: str) -> list[int]:
    """How many groups of masks a round may have."""
    if num_drafts == 0:
        return [0]
    most = max(1, min(num_drafts + 1, MAX_MASKS // (num_drafts + 1)))
    return {"linear": [1], "tree": [most], "auto": [*range(1, most + 1)]}[shape]


def _rate(
    round_s: Callable[[float, float, float, float], float],
    num_running: int,
    p: float,
    num_drafts: int,
    num_ends: int,
) -> float:
    """Tokens per second of one request in the long run."""
    num_masks = num_drafts + 1

    def seconds(num_tokens: int, num_verified: int, num_groups: int) -> float:
        sizes = (num_tokens, num_verified, num_drafts, num_groups * num_drafts)
        return round_s(*(num_running * size for size in sizes)) / num_running

    if num_drafts == 0:
        return 1 / seconds(1, 1, 0)
    ends = _likely_ends(num_drafts, p)[:num_ends]
    stays_warm = sum(p**c * (1 - p if c < num_drafts else 1) for c in ends)
    share_warm = 1 / (2 - stays_warm)
    warm = sum(p**c for c in range(num_drafts + 1))
    tokens = share_warm * warm + (1 - share_warm)
    warm_s = seconds(1 + num_drafts + num_ends * num_masks, 1 + num_drafts, num_ends)
    cold_s = seconds(1 + num_masks, 1, 1)
    return tokens / (share_warm * warm_s + (1 - share_warm) * cold_s)
