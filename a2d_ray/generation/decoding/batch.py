"""What requests ask of one denoise step, as tensors: all requests in one batch, rules mixed.

The host writes them. It knows which options are used at all, so what nobody asks for is None and
costs nothing. Requests of one rule lie side by side.

R requests, B places of the widest one, N rows (asked positions of all requests, one after the
other), V vocabulary, K tokens looked at. G, M, P and U: some of the rows or requests, see there.
"""

from dataclasses import dataclass

from torch import Tensor

from a2d_ray.diffusion.rules import Selector


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Single logits: (row, token id), and a number for each."""

    row_U: Tensor
    id_U: Tensor
    value_U: Tensor


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Penalties of M rows of P requests.

    Attributes:
        used: (request, id) of the answer so far, and how often.
        known: (request, id) of the given text.
        added: (one of the M, id): drafts before it, which its logits have seen; None: none.
        num_requests: P.
        row_M: the rows.
        request_M: theirs, among the P.
        repetition_M1, frequency_M1, presence_M1: float32.
    """

    used: Pairs
    known: Pairs
    added: Pairs | None
    num_requests: int
    row_M: Tensor
    request_M: Tensor
    repetition_M1: Tensor
    frequency_M1: Tensor
    presence_M1: Tensor


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What grammars allow.

    Attributes:
        row_G: the rows that they bind.
        allowed_GV: bool.
        ends: (one of the G, id) of the tokens that end an answer which cannot go on.
    """

    row_G: Tensor
    allowed_GV: Tensor
    ends: Pairs


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Rows whose token is drawn.

    Attributes:
        row_M: the rows; None: all.
        temperature_M1: float32.
        top_k_M: int64, 0: all; None: nobody asks for it.
        most_k: the largest of them.
        top_p_M: float32, 1: all; None: nobody asks for it.
        log_min_p_M: float32; None: nobody asks for it.
        u_M: uniform numbers, float64; None: the Gumbel-max trick, with noise from `start_M`.
        start_M: see `decoding.gumbel_starts`.
    """

    row_M: Tensor | None
    temperature_M1: Tensor
    top_k_M: Tensor | None
    most_k: int
    top_p_M: Tensor | None
    log_min_p_M: Tensor | None
    u_M: Tensor | None
    start_M: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Before:
    """What requests of rule ``klass`` remember of the step before, of its M rows.

    Attributes:
        logp: log-probabilities of earlier steps, [rows, V] each, on the device.
        row_M: which of those rows, one tensor's behind the other's.
        had_M: bool, whether there is one.
        num_stable_M: int64.
    """

    logp: tuple[Tensor, ...]
    row_M: Tensor
    had_M: Tensor
    num_stable_M: Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """Requests of one rule.

    Attributes:
        rule: its name.
        requests, rows: (first, stop) among the R and the N.
        select: the rule.
        options: float32 [requests, 1] by name.
        count_R1: tokens that the schedule gives to this step.
        kind_R1: what ``steps`` sorts by, index into `REMASKINGS`; None: all by confidence.
        u_N: random numbers of an order, float64; None: nobody asks for it.
        before: see there; None: the rule remembers nothing.
    """

    rule: str
    requests: tuple[int, int]
    rows: tuple[int, int]
    select: Selector
    options: dict[str, Tensor]
    count_R1: Tensor
    kind_R1: Tensor | None
    u_N: Tensor | None
    before: Before | None


REMASKINGS = ("low_confidence", "random", "leftmost")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """See the module.

    Attributes:
        num_requests, width: R, B.
        place_N: request times B plus place, int64.
        position_N: canvas positions, int64.
        id_N: ids now: drafts, committed tokens, or whatever where masked; int64.
        is_masked_N: bool.
        mask_id: never chosen; None: a token like others.
        penalties, bias, suppressed, early, allowed: edits, in their order; `early` has the
            position from which on its token may come.
        begin_suppressed: what counts as impossible only once a token is chosen.
        draws: of tokens.
        groups: the requests by rule.
        remask_N: bound of confidence, float32; None: nobody masks again.
        may_fall_N: bool, committed tokens that may be masked again.
        top_T, num_top: rows whose K most likely tokens are asked for, and K; None: nobody's.
    """

    num_requests: int
    width: int
    place_N: Tensor
    position_N: Tensor
    id_N: Tensor
    is_masked_N: Tensor
    mask_id: int | None
    penalties: Penalties | None
    bias: Pairs | None
    suppressed: Pairs | None
    early: Pairs | None
    allowed: Allowed | None
    begin_suppressed: Pairs | None
    draws: tuple[Draws, ...]
    groups: tuple[Group, ...]
    remask_N: Tensor | None
    may_fall_N: Tensor | None
    top_T: Tensor | None
    num_top: int
