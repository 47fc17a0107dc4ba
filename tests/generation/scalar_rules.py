"""Decoding rules as a loop over requests writes them: the oracle of the batched ones.

Slow, with tensors of a single request and numbers as options. N active positions, M masked ones
among them, V vocabulary, T canvas.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from a2d_ray.config import AR_RULES
from a2d_ray.diffusion import decoding
from a2d_ray.generation.decoding.decoder import TokenLogprob


@dataclass(frozen=True)
class Active:
    position_N: Tensor
    id_N: Tensor
    is_masked_N: Tensor


@dataclass(frozen=True)
class Commitment:
    ids_N: Tensor
    logprob_N: Tensor
    is_committed_N: Tensor
    is_remasked_N: Tensor
    top: list[TokenLogprob]


@dataclass(frozen=True)
class State:
    step: int = 0
    counts: tuple[int, ...] = ()
    answer_counts_V: Tensor | None = None
    position_N: Tensor | None = None
    logp_NV: Tensor | None = None
    num_stable_N: Tensor | None = None
    num_remasked_T: Tensor | None = None


def denoise(logits_NV, active, decoder, state):
    """What to commit at the active positions of a request, and its next state."""
    params = decoder.params
    is_masked_N = active.is_masked_N
    logits_NV = logits_NV.float()
    _edit(logits_NV, active.position_N, decoder, state.answer_counts_V)
    chosen_N = _choose(logits_NV, active, decoder, state)
    if not bool(logits_NV.gather(1, chosen_N[:, None])[is_masked_N].isfinite().all()):
        raise FloatingPointError("the logits are not finite: no token can be chosen by them")
    ids_N = torch.where(is_masked_N, chosen_N, active.id_N)
    logits_NV[:, list(params.begin_suppress_tokens)] = -torch.inf
    logprob_N = decoding.token_logprobs(logits_NV, ids_N)
    state = remember(logits_NV, active, decoder, state)
    is_committed_N = select(ids_N, logprob_N.exp(), logits_NV, active, decoder, state)
    is_remasked_N, state = remask(logprob_N.exp(), active, decoder, state)
    if _has_penalties(params):
        vocab = logits_NV.shape[-1]
        counts_V = ids_N[is_committed_N].bincount(minlength=vocab)
        counts_V -= ids_N[is_remasked_N].bincount(minlength=vocab)
        if state.answer_counts_V is not None:
            counts_V += state.answer_counts_V
        state = replace(state, answer_counts_V=counts_V)
    scores_NV = logits_NV.log_softmax(-1) if params.logprobs else logits_NV
    top = scores_NV.topk(params.logprobs or 0, -1)
    columns = (x.tolist() for x in (ids_N, logprob_N, top.indices, top.values))
    likely = [TokenLogprob.of(*entry) for entry in zip(*columns, strict=True)]
    commitment = Commitment(ids_N, logprob_N, is_committed_N, is_remasked_N, likely)
    return (commitment, replace(state, step=state.step + 1))


def _edit(logits_NV, position_N, decoder, answer_counts_V):
    """Penalties and biases, and -inf for what may not be chosen; in place."""
    params = decoder.params
    canvas = decoder.canvas
    if _has_penalties(params):
        _penalize(logits_NV, params, canvas.known_ids, answer_counts_V)
    for token, bias in params.logit_bias.items():
        logits_NV[:, token] += bias
    if not decoder.is_reference:
        logits_NV[:, decoder.mask_id] = -torch.inf
    logits_NV[:, list(params.suppress_tokens)] = -torch.inf
    if params.min_tokens > 0 and (not canvas.is_infill):
        is_early_N = position_N < canvas.start + params.min_tokens
        logits_NV[is_early_N[:, None] & _members(decoder.stop_ids, logits_NV)] = -torch.inf
    if decoder.grammar is not None:
        allowed_V = decoder.grammar.allowed().to(logits_NV.device)
        if not bool((logits_NV[0] > -torch.inf)[allowed_V].any()):
            allowed_V = _members(decoder.stop_ids, logits_NV)
            logits_NV[0, allowed_V] = logits_NV[0, allowed_V].clamp(min=0)
        logits_NV[0, ~allowed_V] = -torch.inf


def _members(ids, logits_NV):
    """bool [V]: which tokens are among `ids`."""
    is_member_V = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
    is_member_V[list(ids)] = True
    return is_member_V


def _choose(logits_NV, active, decoder, state):
    params = decoder.params
    if params.temperature == 0:
        return decoding.most_likely(logits_NV)
    likely_NV = keep_likely(
        logits_NV / params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
    )
    if params.rule not in AR_RULES:
        return draw(likely_NV, _uniform(decoder, active.position_N, state.step))
    start_N = decoding.gumbel_starts(active.position_N, seed=params.seed, choice=decoder.choice)
    noise_NV = decoding.token_gumbel(start_N, likely_NV.shape[-1])
    return decoding.most_likely(likely_NV + noise_NV)


def _uniform(decoder, position_N, step, kind=decoding.CHOICE):
    params = decoder.params
    return decoding.position_uniform(
        position_N, seed=params.seed, step=step, choice=decoder.choice, kind=kind
    )


def _has_penalties(params):
    """Whether any penalty is asked for."""
    asked = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1)
    return any(value != 0 for value in asked)


def _penalize(logits_NV, params, known_ids, answer_counts_V):
    """Lowers, in place, the logits of tokens that were used before."""
    counts_V = answer_counts_V
    if counts_V is None:
        counts_V = logits_NV.new_zeros(logits_NV.shape[-1], dtype=torch.int64)
    is_used_V = counts_V > 0
    is_used_V[list(known_ids)] = True
    factor_V = torch.where(is_used_V, params.repetition_penalty, 1.0)
    logits_NV.copy_(torch.where(logits_NV > 0, logits_NV / factor_V, logits_NV * factor_V))
    logits_NV -= params.frequency_penalty * counts_V + params.presence_penalty * (counts_V > 0)


def remember(logits_NV, active, decoder, state):
    """The state with what the rule needs of earlier steps."""
    keep = MEMORIES.get(decoder.params.rule)
    return state if keep is None else keep(logits_NV, active, decoder, state)


def _schedule(logits_NV, active, decoder, state):
    """With the tokens of each step of the window, from its first step on."""
    if state.step > 0:
        return state
    return replace(state, counts=window_counts(active.position_N, decoder))


def _changes(logits_NV, active, decoder, state):
    """With the distributions of this step, and for how many steps they have hardly changed."""
    position_N = active.position_N
    logp_NV = logits_NV.log_softmax(-1)
    num_stable_N = torch.zeros_like(position_N)
    if state.position_N is not None and state.logp_NV is not None:
        was_N = torch.isin(position_N, state.position_N)
        row_M = torch.searchsorted(state.position_N, position_N[was_N])
        is_still_M = (
            decoding.divergence(logp_NV[was_N], state.logp_NV[row_M]) < decoder.params.kl_threshold
        )
        num_stable_N[was_N] = is_still_M * (state.num_stable_N[row_M] + 1)
    return replace(state, position_N=position_N, logp_NV=logp_NV, num_stable_N=num_stable_N)


MEMORIES = {"steps": _schedule, "klass": _changes}


def window_counts(position_N, decoder):
    """Tokens that each step of a window commits under rule ``steps``."""
    params = decoder.params
    canvas = decoder.canvas
    num_steps = decoding.steps_per_block(params.steps, canvas.num_blocks, canvas.block_size)
    u_SN = None
    if params.stochastic_transfer:
        steps = [_uniform(decoder, position_N, s, decoding.COUNT) for s in range(num_steps)]
        u_SN = torch.stack(steps)
    return tuple(decoding.commit_counts(len(position_N), num_steps, u_SN=u_SN))


def select(ids_N, confidence_N, logits_NV, active, decoder, state):
    """Which masked positions the rule commits; bool [N]."""
    params = decoder.params
    rows_N = active.is_masked_N
    confidence_M = confidence_N[rows_N]
    position_M = active.position_N[rows_N]
    masked = Masked(
        confidence_N=confidence_M,
        logits_NV=logits_NV if params.remask_threshold == 0 else logits_NV[rows_N],
        position_N=position_M,
        order_N=_order(confidence_M, position_M, decoder, state.step),
        count=(*state.counts[state.step :], 1)[0],
        num_stable_N=None if state.num_stable_N is None else state.num_stable_N[rows_N],
    )
    chosen_M = SELECTORS[params.rule](masked, params)
    if decoder.grammar is not None:
        chosen_M = _accepted(ids_N[rows_N], chosen_M, decoder)
    is_committed_N = torch.zeros_like(rows_N)
    is_committed_N[rows_N] = chosen_M
    return is_committed_N


def _order(confidence_M, position_M, decoder, step):
    """What rule ``steps`` sorts by; the highest go first."""
    if decoder.params.remasking == "random":
        return _uniform(decoder, position_M, step, decoding.ORDER)
    return confidence_M if decoder.params.remasking == "low_confidence" else -position_M


def _accepted(ids_M, chosen_M, decoder):
    """The run of chosen tokens that the grammar accepts, up to an end-of-turn token."""
    run = ids_M[chosen_M].tolist()
    num_accepted = 0
    for token in run:
        if not decoder.grammar.accept(token) and num_accepted > 0:
            break
        num_accepted += 1
        if token in decoder.stop_ids:
            break
    return chosen_M & (torch.arange(len(chosen_M), device=chosen_M.device) < num_accepted)


def remask(confidence_N, active, decoder, state):
    """Which committed positions become masks again; bool [N]."""
    if decoder.params.remask_threshold == 0:
        return (torch.zeros_like(active.is_masked_N), state)
    num_remasked_T = state.num_remasked_T
    if num_remasked_T is None:
        num_remasked_T = torch.zeros(len(decoder.canvas), dtype=torch.int64).to(confidence_N.device)
    is_remasked_N = ~active.is_masked_N & select_remask(
        confidence_N, num_remasked_T[active.position_N], threshold=decoder.params.remask_threshold
    )
    num_remasked_T = num_remasked_T.index_add(
        0, active.position_N, is_remasked_N.to(num_remasked_T.dtype)
    )
    return (is_remasked_N, replace(state, num_remasked_T=num_remasked_T))


def keep_likely(logits_NV, *, top_k=0, top_p=1, min_p=0):
    """Logits with -inf where a token is too unlikely to be drawn."""
    if 0 < top_k < logits_NV.shape[-1]:
        least_N1 = logits_NV.topk(top_k, -1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)
    if top_p < 1:
        logits_NV = logits_NV.masked_fill(logits_NV < _nucleus_edge(logits_NV, top_p), -torch.inf)
    if min_p > 0:
        least_N1 = logits_NV.amax(-1, keepdim=True) + math.log(min_p)
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)
    return logits_NV


def _nucleus_edge(logits_NV, top_p):
    """Logit of the last token within `top_p`, [N, 1]. Most nuclei are small: V is rarely sorted."""
    lse_N1 = logits_NV.logsumexp(-1, keepdim=True)
    for size in (256, logits_NV.shape[-1]):
        sorted_NK = logits_NV.topk(min(size, logits_NV.shape[-1]), -1).values
        p_NK = (sorted_NK - lse_N1).exp()
        num_before_N1 = (p_NK.cumsum(-1) < top_p).sum(-1, keepdim=True)
        if bool((num_before_N1 < p_NK.shape[-1]).all()):
            break
    return sorted_NK.gather(-1, num_before_N1.clamp(max=p_NK.shape[-1] - 1))


def draw(logits_NV, u_N):
    """One token per position from softmax(logits) by inverse CDF; int64 [N]."""
    cumulative_NV = torch.softmax(logits_NV, -1).double().cumsum(-1)
    total_N = cumulative_NV[:, -1]
    target_N = torch.minimum(u_N * total_N, total_N.nextafter(torch.zeros_like(total_N)))
    drawn_N = torch.searchsorted(cumulative_NV, target_N[:, None], right=True)[:, 0]
    is_none_N = drawn_N == logits_NV.shape[-1]
    if bool(is_none_N.any()):
        drawn_N = torch.where(is_none_N, decoding.most_likely(logits_NV), drawn_N)
    return drawn_N


def select_top(score_N, count):
    """Rule ``steps``: the `count` highest scores: confidence, random numbers, or -position."""
    order = torch.argsort(score_N, descending=True, stable=True)
    is_selected_N = torch.zeros_like(score_N, dtype=torch.bool)
    is_selected_N[order[: max(count, 1)]] = True
    return is_selected_N


def select_threshold(confidence_N, threshold):
    """Rule ``threshold``: all with confidence > threshold, else the most confident one."""
    return _or_best(confidence_N > threshold, confidence_N)


def select_factor(confidence_N, factor):
    """Rule ``factor``: the n most confident, n the largest with (n + 1)(1 - conf_(n)) < factor."""
    sorted_N = confidence_N.sort(descending=True, stable=True).values
    n_N = torch.arange(1, len(sorted_N) + 1, device=sorted_N.device)
    return select_top(confidence_N, _largest((n_N + 1) * (1 - sorted_N) < factor))


def select_frechet(confidence_N, delta):
    """Rule ``frechet``: the n most confident, n the largest whose bound exceeds delta."""
    sorted_N = confidence_N.sort(descending=True, stable=True).values
    n_N = torch.arange(1, len(sorted_N) + 1, device=sorted_N.device)
    bound_N = sorted_N.cumsum(0) - (n_N - 1) - (1 - sorted_N)
    return select_top(confidence_N, _largest(bound_N > delta))


def select_entropy_bound(entropy_N, gamma):
    """Rule ``entropy_bound``: the n of lowest entropy."""
    sorted_N = entropy_N.sort(stable=True).values
    return select_top(-entropy_N, _largest(sorted_N.cumsum(0) - sorted_N <= gamma))


def select_entropy(entropy_N, position_N, *, threshold, slope):
    """Rule ``entropy``: H + slope x (position - first masked) <= threshold, else the lowest."""
    cost_N = entropy_N + slope * (position_N - position_N[0])
    return _or_best(cost_N <= threshold, -cost_N)


def select_klass(confidence_N, num_stable_N, *, threshold, num_steps=2):
    """Rule ``klass``: confident, and its distribution has settled; else the most confident one."""
    return _or_best((confidence_N > threshold) & (num_stable_N >= num_steps), confidence_N)


def select_prefix(confidence_N, threshold):
    """Rule ``prefix``: from the first masked position rightwards while confidence >= threshold."""
    is_selected_N = (confidence_N >= threshold).cumprod(0).bool()
    is_selected_N[0] = True
    return is_selected_N


def select_remask(confidence_N, num_remasked_N, *, threshold, most=3):
    """Option ``remask``: committed tokens whose probability fell below a bound; may be none."""
    return (confidence_N < threshold) & (num_remasked_N < most)


def _largest(holds_N):
    """The largest n (from 1) for which it holds; 0 if none."""
    found = holds_N.nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def _or_best(is_selected_N, score_N):
    return is_selected_N | select_top(score_N, 1) & ~is_selected_N.any()


@dataclass(frozen=True, kw_only=True)
class Masked:
    """What a rule looks at: the masked positions of a window, ascending."""

    confidence_N: Tensor
    logits_NV: Tensor
    position_N: Tensor
    order_N: Tensor
    count: int
    num_stable_N: Tensor | None


SELECTORS: dict = {
    "threshold": lambda masked, options: select_threshold(masked.confidence_N, options.threshold),
    "steps": lambda masked, options: select_top(masked.order_N, masked.count),
    "factor": lambda masked, options: select_factor(masked.confidence_N, options.factor),
    "frechet": lambda masked, options: select_frechet(masked.confidence_N, options.delta),
    "entropy_bound": lambda masked, options: select_entropy_bound(
        decoding.entropy(masked.logits_NV), options.gamma
    ),
    "prefix": lambda masked, options: select_prefix(masked.confidence_N, options.threshold),
    "klass": lambda masked, options: select_klass(
        masked.confidence_N, masked.num_stable_N, threshold=options.threshold
    ),
    "entropy": lambda masked, options: select_entropy(
        decoding.entropy(masked.logits_NV),
        masked.position_N,
        threshold=options.entropy_threshold,
        slope=options.entropy_slope,
    ),
    "ar": lambda masked, options: torch.ones_like(masked.position_N, dtype=torch.bool),
    "speculate": lambda masked, options: torch.ones_like(masked.position_N, dtype=torch.bool),
}
