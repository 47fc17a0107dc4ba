"""One denoise step of all requests of a batch, on any device, without waiting for it.

Every function here is a fixed number of operations, whatever the number of requests. What comes out
is one tensor of 32-bit words, which the host reads (`reading`).

R requests, B places, N rows, V vocabulary; M, G, U, T, K: see `Batch`.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from a2d_ray.diffusion import decoding
from a2d_ray.diffusion.rules import Masked, on_grid, select_remask
from a2d_ray.generation.decoding.batch import Allowed, Batch, Draws, Group, Pairs, Penalties

COMMITTED, REMASKED, SOUND, WIDE = 1, 2, 4, 8
STABLE_SHIFT = 4  # the number of stable steps stands above these bits


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a step decided.

    Attributes:
        words: int32: N ids, N flags, N log-probabilities, N confidences (the last two as bits of
            float32); then T x K ids and T x K log-probabilities of the most likely tokens.
        logp_MV: log-probabilities that rule ``klass`` remembers; None: nobody does.
    """

    words: Tensor
    logp_MV: Tensor | None


def decide(logits_NV: Tensor, batch: Batch, *, is_exact: bool) -> Decision:
    """What to commit.

    Args:
        logits_NV: logits of the rows, after guidance and right shift; changed in place where they
            are float32.
        batch: on their device.
        is_exact: look for large nuclei, too. That waits for the device. Without it their rows are
            flagged `WIDE`, and their tokens are not right.
    """
    logits_NV = logits_NV.float()
    edit(logits_NV, batch)
    chosen_N, is_sound_N, is_wide_N = _choose(logits_NV, batch, is_exact=is_exact)
    id_N = torch.where(batch.is_masked_N, chosen_N, batch.id_N)
    if batch.begin_suppressed is not None:
        _forbid(logits_NV, batch.begin_suppressed)
    logprob_N = decoding.token_logprobs(logits_NV, id_N)
    confidence_N = logprob_N.exp()
    committed_N, num_stable_N, logp_MV = _select(logits_NV, chosen_N, confidence_N, batch)
    flags_N = committed_N * COMMITTED + is_sound_N * SOUND
    if is_wide_N is not None:
        flags_N += is_wide_N * WIDE
    if batch.remask_N is not None and batch.may_fall_N is not None:
        falls_N = select_remask(confidence_N, batch.may_fall_N, threshold_N=batch.remask_N)
        flags_N += falls_N * REMASKED
    if num_stable_N is not None:
        flags_N += num_stable_N << STABLE_SHIFT
    words = [id_N.int(), flags_N.int(), _bits(logprob_N), _bits(confidence_N)]
    if batch.top_T is not None:
        words += _top(logits_NV, batch.top_T, batch.num_top)
    return Decision(words=torch.cat(words), logp_MV=logp_MV)


def edit(logits_NV: Tensor, batch: Batch) -> None:
    """Penalties and biases, and -inf for what may not be chosen; in place."""
    if batch.penalties is not None:
        _penalize(logits_NV, batch.penalties)
    if batch.bias is not None:
        pairs = batch.bias
        logits_NV.index_put_((pairs.row_U, pairs.id_U), pairs.value_U, accumulate=True)
    if batch.mask_id is not None:
        logits_NV[:, batch.mask_id] = -torch.inf
    for forbidden in (batch.suppressed, batch.early):
        if forbidden is not None:
            _forbid(logits_NV, forbidden)
    if batch.allowed is not None:
        _bind(logits_NV, batch.allowed)


def _forbid(logits_NV: Tensor, pairs: Pairs) -> None:
    never = torch.full((), -torch.inf, device=logits_NV.device)
    logits_NV.index_put_((pairs.row_U, pairs.id_U), never)


def _bind(logits_NV: Tensor, allowed: Allowed) -> None:
    """-inf for what a grammar does not allow; in a dead end the answer ends."""
    bound_GV = logits_NV[allowed.row_G]
    is_open_G = ((bound_GV > -torch.inf) & allowed.allowed_GV).any(-1)
    end = allowed.ends.row_U, allowed.ends.id_U
    is_open_U = is_open_G[end[0]]
    raised_U = torch.where(is_open_U, bound_GV[end], bound_GV[end].clamp(min=0))
    bound_GV = bound_GV.index_put(end, raised_U)
    is_allowed_GV = allowed.allowed_GV & is_open_G[:, None]
    is_end_U = torch.where(is_open_U, is_allowed_GV[end], True)
    is_allowed_GV = is_allowed_GV.index_put(end, is_end_U)
    logits_NV.index_copy_(0, allowed.row_G, bound_GV.masked_fill(~is_allowed_GV, -torch.inf))


def _penalize(logits_NV: Tensor, penalties: Penalties) -> None:
    """Lowers, in place, the logits of tokens that were used before.

    Repetition (of the prompt or the answer) divides positive logits and multiplies negative ones;
    frequency takes penalty x count, presence takes the penalty once, both of the answer alone.

    Source: repetition: CTRL, arXiv 1909.05858; the others: OpenAI's API.
    """
    shape = penalties.num_requests, logits_NV.shape[-1]
    device = logits_NV.device
    used = penalties.used
    counts_MV = torch.zeros(shape, device=device)
    counts_MV.index_put_((used.row_U, used.id_U), used.value_U, accumulate=True)
    is_known_MV = torch.zeros(shape, dtype=torch.bool, device=device)
    is_known_MV.index_put_(
        (penalties.known.row_U, penalties.known.id_U),
        torch.ones((), dtype=torch.bool, device=device),
    )
    is_one = penalties.num_requests == 1 and penalties.added is None
    if not (is_one and device.type == "cpu"):  # there one row, broadcast, saves passes over [M, V]
        counts_MV = counts_MV[penalties.request_M]
        is_known_MV = is_known_MV[penalties.request_M]
    if penalties.added is not None:
        added = penalties.added
        counts_MV.index_put_((added.row_U, added.id_U), added.value_U, accumulate=True)
    is_all = len(penalties.row_M) == len(logits_NV)
    own_MV = logits_NV if is_all else logits_NV[penalties.row_M]
    is_used_MV = (counts_MV > 0) | is_known_MV
    factor_MV = torch.where(is_used_MV, penalties.repetition_M1, 1.0)
    own_MV = torch.where(own_MV > 0, own_MV / factor_MV, own_MV * factor_MV)
    own_MV -= penalties.frequency_M1 * counts_MV + penalties.presence_M1 * (counts_MV > 0)
    logits_NV.index_copy_(0, penalties.row_M, own_MV)


def _choose(
    logits_NV: Tensor, batch: Batch, *, is_exact: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each row's token, whether its logits are finite, and whether its nucleus was too large."""
    vocab = logits_NV.shape[-1]
    chosen_N: Tensor | None = None
    is_wide_N: Tensor | None = None
    if not any(draws.row_M is None for draws in batch.draws):
        chosen_N = decoding.most_likely(logits_NV)
    for draws in batch.draws:
        drawn_M, is_wide_M = _draw(logits_NV, draws, is_exact=is_exact)
        if draws.row_M is None:
            chosen_N = drawn_M
            is_wide_N = is_wide_M
            continue
        assert chosen_N is not None
        chosen_N = chosen_N.index_copy(0, draws.row_M, drawn_M)
        if is_wide_M is not None:
            if is_wide_N is None:
                is_wide_N = torch.zeros_like(chosen_N, dtype=torch.bool)
            is_wide_N = is_wide_N.index_copy(0, draws.row_M, is_wide_M)
    assert chosen_N is not None
    is_drawn_N = chosen_N < vocab
    chosen_N = chosen_N.clamp(max=vocab - 1)
    is_finite_N = logits_NV.gather(1, chosen_N[:, None])[:, 0].isfinite()
    return chosen_N, is_drawn_N & is_finite_N, is_wide_N


def _draw(logits_NV: Tensor, draws: Draws, *, is_exact: bool) -> tuple[Tensor, Tensor | None]:
    own_MV = logits_NV if draws.row_M is None else logits_NV[draws.row_M]
    vocab = own_MV.shape[-1]
    likely_MV = own_MV / draws.temperature_M1
    is_wide_M = None
    if draws.top_k_M is not None:
        top_k_M = draws.top_k_M.clamp(max=vocab)
        likely_MV = decoding.keep_top_k(likely_MV, top_k_M, min(draws.most_k, vocab))
    if draws.top_p_M is not None:
        likely_MV, is_wide_M = decoding.keep_top_p(likely_MV, draws.top_p_M, is_exact=is_exact)
    if draws.log_min_p_M is not None:
        likely_MV = decoding.keep_min_p(likely_MV, draws.log_min_p_M)
    if draws.u_M is not None:
        return decoding.draw(likely_MV, draws.u_M), is_wide_M
    assert draws.start_M is not None
    noise_MV = decoding.token_gumbel(draws.start_M, vocab)
    return decoding.most_likely(likely_MV + noise_MV), is_wide_M


def _select(
    logits_NV: Tensor, chosen_N: Tensor, confidence_N: Tensor, batch: Batch
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """bool [N]: which rows the rules commit; stable steps and memory of rule ``klass``."""
    is_kept_N = chosen_N == batch.id_N
    committed = []
    num_stable_N: Tensor | None = None
    logp_MV: Tensor | None = None
    for group in batch.groups:
        first, stop = group.rows
        rows = slice(first, stop)
        if group.before is not None:
            logp_MV, num_stable_M = _changes(logits_NV[rows], group, batch)
            num_stable_N = torch.zeros_like(chosen_N)
            num_stable_N[rows] = num_stable_M
        masked = _masked(
            group,
            batch,
            logits_MV=logits_NV[rows],
            confidence_M=confidence_N[rows],
            is_kept_M=is_kept_N[rows],
            num_stable_M=None if num_stable_N is None else num_stable_N[rows],
        )
        chosen_RB = group.select(masked, SimpleNamespace(**group.options))
        committed.append(chosen_RB.flatten()[masked.place_N])
    committed_N = committed[0] if len(committed) == 1 else torch.cat(committed)
    return committed_N & batch.is_masked_N, num_stable_N, logp_MV


def _masked(
    group: Group,
    batch: Batch,
    *,
    logits_MV: Tensor,
    confidence_M: Tensor,
    is_kept_M: Tensor,
    num_stable_M: Tensor | None,
) -> Masked:
    """What a rule looks at."""
    rows = slice(*group.rows)
    shape = torch.Size((group.requests[1] - group.requests[0], batch.width))
    place_M = batch.place_N[rows] - group.requests[0] * batch.width

    def grid(values_M: Tensor, fill: float) -> Tensor:
        return on_grid(values_M, place_M, shape, fill)

    is_masked_RB = grid(batch.is_masked_N[rows], False)
    confidence_RB = grid(confidence_M, -torch.inf)
    if batch.remask_N is not None:
        confidence_RB = torch.where(is_masked_RB, confidence_RB, -torch.inf)
    position_RB = grid(batch.position_N[rows], 0)
    order_RB = confidence_RB
    if group.kind_R1 is not None:
        order_RB = confidence_RB.double()
        if group.u_N is not None:
            order_RB = torch.where(group.kind_R1 == 1, grid(group.u_N, 0), order_RB)
        order_RB = torch.where(group.kind_R1 == 2, -position_RB.double(), order_RB)
        order_RB = torch.where(is_masked_RB, order_RB, -torch.inf)
    return Masked(
        is_masked_RB=is_masked_RB,
        confidence_RB=confidence_RB,
        position_RB=position_RB,
        order_RB=order_RB,
        count_R1=group.count_R1,
        is_kept_RB=grid(is_kept_M, False),
        num_stable_RB=position_RB * 0 if num_stable_M is None else grid(num_stable_M, 0),
        logits_NV=logits_MV,
        place_N=place_M,
    )


def _changes(logits_MV: Tensor, group: Group, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of this step, and for how many steps they have hardly changed."""
    before = group.before
    assert before is not None
    logp_MV = logits_MV.log_softmax(-1)
    if not before.logp:
        return logp_MV, torch.zeros_like(before.num_stable_M)
    known = before.logp[0] if len(before.logp) == 1 else torch.cat(before.logp)
    change_M = decoding.divergence(logp_MV, known[before.row_M])
    request_M = batch.place_N[slice(*group.rows)] // batch.width - group.requests[0]
    is_still_M = change_M < group.options["kl_threshold"][request_M, 0]
    return logp_MV, (before.had_M & is_still_M) * (before.num_stable_M + 1)


def _top(logits_NV: Tensor, top_T: Tensor, num_top: int) -> list[Tensor]:
    """The most likely tokens of some rows."""
    own_TV = logits_NV if len(top_T) == len(logits_NV) else logits_NV[top_T]
    best = own_TV.log_softmax(-1).topk(min(num_top, own_TV.shape[-1]), -1)
    return [best.indices.int().flatten(), _bits(best.values).flatten()]


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32)
