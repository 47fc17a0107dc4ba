"""One denoise step of a window: logits of its active positions -> what to commit.

The seam between the decoding rules and whatever runs the model. A request has one `Decoder`, which
never changes, and a `RuleState`, of which every step returns the next. The caller

1. asks `Decoder.active` which positions of the window need logits;
2. runs the model and hands their rows to `denoise`;
3. writes `Commitment.ids_N` where `is_committed_N`, and masks again where `is_remasked_N`;
4. goes on with `state.open_window()` when the window holds no mask any more.

N active positions, V vocabulary, K alternatives, T canvas positions.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from a2d_ray.diffusion import decoding
from a2d_ray.generation.canvas import Canvas
from a2d_ray.generation.grammar import Grammar
from a2d_ray.generation.params import SamplingParams
from a2d_ray.generation.penalties import has_penalties, penalize


@dataclass(frozen=True, kw_only=True)
class Active:
    """The positions of one step, ascending.

    Attributes:
        position_N: canvas positions, int64.
        id_N: their ids now, int64 (whatever, where masked).
        is_masked_N: False only with `remask_threshold`: committed tokens, looked at again.
    """

    position_N: Tensor
    id_N: Tensor
    is_masked_N: Tensor


class TokenLogprob(NamedTuple):
    """How likely a token was at the step that committed it.

    Attributes:
        token_id: the token.
        logprob: its log-probability, nats; 0 for given text (infill).
        top: (token id, log-probability) of the most likely tokens there, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """What one step decided.

    Attributes:
        ids_N: int64, the token that each active position would take, or has.
        logprob_N: float32, its log-probability at temperature 1, after guidance, penalties and
            suppression, before top-k, top-p and min-p.
        is_committed_N: bool, masked positions that take their token now; at least one.
        is_remasked_N: bool, committed positions that become masks again.
        top_ids_NK, top_logprobs_NK: the K = `params.logprobs` most likely tokens of each position.
    """

    ids_N: Tensor
    logprob_N: Tensor
    is_committed_N: Tensor
    is_remasked_N: Tensor
    top_ids_NK: Tensor
    top_logprobs_NK: Tensor

    @property
    def confidence_N(self) -> Tensor:  # noqa: N802
        """float32, exp(logprob_N)."""
        return self.logprob_N.exp()

    def token_logprobs(self) -> list[TokenLogprob]:
        """Log-probabilities of the committed tokens, in their order."""
        picked = [
            values_N[self.is_committed_N].tolist()
            for values_N in (self.ids_N, self.logprob_N, self.top_ids_NK, self.top_logprobs_NK)
        ]
        return [
            TokenLogprob(token, logprob, tuple(zip(ids, logprobs, strict=True)))
            for token, logprob, ids, logprobs in zip(*picked, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class RuleState:
    """What a request remembers from step to step; `RuleState()` is its beginning.

    Attributes:
        step: denoise step within the window.
        counts: tokens per step of the window (rule ``steps``).
        answer_counts_V: how often each id was committed (penalties).
        logp_NV: log-probabilities at `position_N` in the step before (rule ``klass``).
        num_stable_N: for how many steps they hardly changed (rule ``klass``).
        num_remasked_T: how often each canvas position was masked again (`remask_threshold`).
    """

    step: int = 0
    counts: tuple[int, ...] = ()
    answer_counts_V: Tensor | None = None
    position_N: Tensor | None = None
    logp_NV: Tensor | None = None
    num_stable_N: Tensor | None = None
    num_remasked_T: Tensor | None = None

    def open_window(self) -> "RuleState":
        """The state at the first step of the next window."""
        return RuleState(answer_counts_V=self.answer_counts_V)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What stays the same through a request.

    Attributes:
        params: its options.
        canvas: its canvas.
        mask_id: id that is never chosen.
        stop_ids: ids that end the answer.
        choice: index of the answer among the n of its prompt.
        grammar: what the answer obeys (rule ``prefix``).
        is_reference: the preset ``reference``, for comparison with the public recipe's sampler:
            the mask token is a token like others, and equal scores fall as in torch.topk.

    Raises:
        ValueError: a grammar with options that it cannot go with.
    """

    params: SamplingParams
    canvas: Canvas
    mask_id: int
    stop_ids: frozenset[int]
    choice: int = 0
    grammar: Grammar | None = None
    is_reference: bool = False

    def __post_init__(self) -> None:
        if self.grammar is not None:
            check_grammar(self.params, self.canvas.is_infill, self.stop_ids)

    def active(self, x_T: Tensor, is_masked_T: Tensor, window: tuple[int, int]) -> Active:
        """The positions of `window` whose logits the next step needs.

        Args:
            x_T: ids of the canvas, int64.
            is_masked_T: which are masked; at least one in the window.
            window: (start, stop).
        """
        is_active_W = is_masked_T[window[0] : window[1]]
        if self.params.remask_threshold > 0:
            # Left of the first mask lies what is final: it may have been read already.
            is_open_W = torch.tensor(self.canvas.is_open[window[0] : window[1]])
            is_active_W = is_open_W.to(x_T.device) & (is_active_W.cumsum(0) > 0)
        position_N = window[0] + is_active_W.nonzero()[:, 0]
        return Active(
            position_N=position_N, id_N=x_T[position_N], is_masked_N=is_masked_T[position_N]
        )

    def uniform(self, position_N: Tensor, step: int, kind: int = decoding.CHOICE) -> Tensor:
        """Random numbers of this answer: one per position."""
        return decoding.position_uniform(
            position_N, seed=self.params.seed, step=step, choice=self.choice, kind=kind
        )


def check_grammar(params: SamplingParams, is_infill: bool, stop_ids: frozenset[int]) -> None:
    """Refuses options that a grammar cannot go with.

    Raises:
        ValueError: another rule than ``prefix``, holes in the prompt, or no end-of-turn token.
    """
    if params.rule != "prefix" or is_infill:
        where = "a prompt with holes" if is_infill else f"rule {params.rule!r}"
        raise ValueError(f"a grammar reads from left to right: it needs rule 'prefix', not {where}")
    if not stop_ids:
        raise ValueError("a grammar needs an end-of-turn token: set ignore_eos=false")


def denoise(
    logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState
) -> tuple[Commitment, RuleState]:
    """What to commit at the active positions of a request, and its next state.

    Pure, but for `decoder.grammar`, which takes the committed tokens, and `logits_NV`, which is
    changed in place where it is float32.

    Args:
        logits_NV: logits of the active positions, after guidance and right shift.
        active: see `Decoder.active`.
        decoder: the request.
        state: as the step before returned it.
    """
    params, is_masked_N = decoder.params, active.is_masked_N
    logits_NV = logits_NV.float()
    _edit(logits_NV, active.position_N, decoder, state.answer_counts_V)
    ids_N = torch.where(is_masked_N, _choose(logits_NV, active, decoder, state), active.id_N)
    logits_NV[:, list(params.begin_suppress_tokens)] = -torch.inf
    logprob_N = decoding.token_logprobs(logits_NV, ids_N)
    state = _remember(logits_NV, active, decoder, state)
    is_committed_N = _select(ids_N, logprob_N.exp(), logits_NV, active, decoder, state)
    is_remasked_N, state = _remask(logprob_N.exp(), active, decoder, state)
    if has_penalties(params):
        vocab = logits_NV.shape[-1]
        counts_V = ids_N[is_committed_N].bincount(minlength=vocab)
        counts_V -= ids_N[is_remasked_N].bincount(minlength=vocab)
        if state.answer_counts_V is not None:
            counts_V += state.answer_counts_V
        state = replace(state, answer_counts_V=counts_V)
    top = (logits_NV - logits_NV.logsumexp(-1, keepdim=True)).topk(params.logprobs or 0, -1)
    commitment = Commitment(
        ids_N=ids_N,
        logprob_N=logprob_N,
        is_committed_N=is_committed_N,
        is_remasked_N=is_remasked_N,
        top_ids_NK=top.indices,
        top_logprobs_NK=top.values,
    )
    return commitment, replace(state, step=state.step + 1)


def _edit(
    logits_NV: Tensor, position_N: Tensor, decoder: Decoder, answer_counts_V: Tensor | None
) -> None:
    """Penalties and biases, and -inf for what may not be chosen; in place."""
    params, canvas = decoder.params, decoder.canvas
    if has_penalties(params):
        penalize(logits_NV, params, canvas.known_ids, answer_counts_V)
    for token, bias in params.logit_bias.items():
        logits_NV[:, token] += bias
    if not decoder.is_reference:
        logits_NV[:, decoder.mask_id] = -torch.inf
    logits_NV[:, list(params.suppress_tokens)] = -torch.inf
    if params.min_tokens > 0 and not canvas.is_infill:
        is_early_N = position_N < canvas.start + params.min_tokens
        logits_NV[is_early_N[:, None] & _members(decoder.stop_ids, logits_NV)] = -torch.inf
    if decoder.grammar is not None:
        allowed_V = decoder.grammar.allowed().to(logits_NV.device)
        if not bool((logits_NV[0] > -torch.inf)[allowed_V].any()):
            allowed_V = _members(decoder.stop_ids, logits_NV)  # a dead end: the answer ends
            logits_NV[0, allowed_V] = logits_NV[0, allowed_V].clamp(min=0)
        logits_NV[0, ~allowed_V] = -torch.inf


def _members(ids: Collection[int], logits_NV: Tensor) -> Tensor:
    """bool [V]: which tokens are among `ids`."""
    is_member_V = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
    is_member_V[list(ids)] = True
    return is_member_V


def _choose(logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState) -> Tensor:
    params = decoder.params
    if params.temperature == 0:
        return logits_NV.argmax(-1)
    likely_NV = decoding.keep_likely(
        logits_NV / params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
    )
    return decoding.draw(likely_NV, decoder.uniform(active.position_N, state.step))


def _remember(logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState) -> RuleState:
    """The state with what the rule needs of earlier steps: the schedule, or the changes."""
    if decoder.params.rule == "steps" and state.step == 0:
        return replace(state, counts=window_counts(active.position_N, decoder))
    if decoder.params.rule != "klass":
        return state
    position_N, logp_NV = active.position_N, logits_NV.log_softmax(-1)
    num_stable_N = torch.zeros_like(position_N)
    if state.position_N is not None and state.logp_NV is not None:
        was_N = torch.isin(position_N, state.position_N)
        row_M = torch.searchsorted(state.position_N, position_N[was_N])
        is_still_M = (
            decoding.divergence(logp_NV[was_N], state.logp_NV[row_M]) < decoder.params.kl_threshold
        )
        num_stable_N[was_N] = is_still_M * (state.num_stable_N[row_M] + 1)  # type: ignore[index]
    return replace(state, position_N=position_N, logp_NV=logp_NV, num_stable_N=num_stable_N)


def window_counts(position_N: Tensor, decoder: Decoder) -> tuple[int, ...]:
    """Tokens that each step of a window commits under rule ``steps``.

    Args:
        position_N: the window's masked positions.
        decoder: the request.
    """
    params, canvas = decoder.params, decoder.canvas
    num_steps = decoding.steps_per_block(params.steps, canvas.num_blocks, canvas.block_size)
    u_SN = None
    if params.stochastic_transfer:
        steps = [decoder.uniform(position_N, s, decoding.COUNT) for s in range(num_steps)]
        u_SN = torch.stack(steps)
    return tuple(decoding.commit_counts(len(position_N), num_steps, u_SN=u_SN))


def _select(
    ids_N: Tensor,
    confidence_N: Tensor,
    logits_NV: Tensor,
    active: Active,
    decoder: Decoder,
    state: RuleState,
) -> Tensor:
    """Which masked positions the rule commits; bool [N]."""
    params, rows_N = decoder.params, active.is_masked_N
    confidence_M, position_M = confidence_N[rows_N], active.position_N[rows_N]
    match params.rule:
        case "threshold":
            chosen_M = decoding.select_threshold(confidence_M, params.threshold)
        case "steps":
            left = state.counts[state.step :]  # none when masks came back
            score_M, count = _order(confidence_M, position_M, decoder, state.step), (*left, 1)[0]
            if decoder.is_reference:
                chosen_M = _topk_of_block(score_M, count, position_M, decoder.canvas)
            else:
                chosen_M = decoding.select_top(score_M, count)
        case "factor":
            chosen_M = decoding.select_factor(confidence_M, params.factor)
        case "frechet":
            chosen_M = decoding.select_frechet(confidence_M, params.delta)
        case "entropy_bound":
            entropy_M = decoding.entropy(logits_NV[rows_N])
            chosen_M = decoding.select_entropy_bound(entropy_M, params.gamma)
        case "entropy":
            chosen_M = decoding.select_entropy(
                decoding.entropy(logits_NV[rows_N]),
                position_M,
                threshold=params.entropy_threshold,
                slope=params.entropy_slope,
            )
        case "klass":
            num_stable_M = state.num_stable_N[rows_N]  # type: ignore[index]
            chosen_M = decoding.select_klass(confidence_M, num_stable_M, threshold=params.threshold)
        case "prefix":
            chosen_M = decoding.select_prefix(confidence_M, params.threshold)
            if decoder.grammar is not None:
                chosen_M = _accepted(ids_N[rows_N], chosen_M, decoder)
    is_committed_N = torch.zeros_like(rows_N)
    is_committed_N[rows_N] = chosen_M
    return is_committed_N


def _order(confidence_M: Tensor, position_M: Tensor, decoder: Decoder, step: int) -> Tensor:
    """What rule ``steps`` sorts by; the highest go first."""
    if decoder.params.remasking == "random":
        return decoder.uniform(position_M, step, decoding.ORDER)
    return confidence_M if decoder.params.remasking == "low_confidence" else -position_M


def _topk_of_block(score_M: Tensor, count: int, position_M: Tensor, canvas: Canvas) -> Tensor:
    """`select_top` with ties as the public sampler has them: torch.topk over the block."""
    block_T = torch.tensor(canvas.blocks)
    score_T = torch.full((len(canvas),), -torch.inf, dtype=score_M.dtype)
    score_T[position_M] = score_M
    place_B = (block_T == block_T[position_M[0]]).nonzero()[:, 0]
    return torch.isin(position_M, place_B[score_T[place_B].topk(count).indices])


def _accepted(ids_M: Tensor, chosen_M: Tensor, decoder: Decoder) -> Tensor:
    """The run of chosen tokens that the grammar accepts, up to an end-of-turn token.

    The first is one of `Grammar.allowed`, or ends the answer.
    """
    run = ids_M[chosen_M].tolist()
    num_accepted = 0
    for token in run:
        if not decoder.grammar.accept(token) and num_accepted > 0:  # type: ignore[union-attr]
            break
        num_accepted += 1
        if token in decoder.stop_ids:
            break
    return chosen_M & (torch.arange(len(chosen_M), device=chosen_M.device) < num_accepted)


def _remask(
    confidence_N: Tensor, active: Active, decoder: Decoder, state: RuleState
) -> tuple[Tensor, RuleState]:
    """Which committed positions become masks again; bool [N]."""
    if decoder.params.remask_threshold == 0:
        return torch.zeros_like(active.is_masked_N), state
    num_remasked_T = state.num_remasked_T
    if num_remasked_T is None:
        num_remasked_T = torch.zeros(len(decoder.canvas), dtype=torch.int64).to(confidence_N.device)
    is_remasked_N = ~active.is_masked_N & decoding.select_remask(
        confidence_N,
        num_remasked_T[active.position_N],
        threshold=decoder.params.remask_threshold,
    )
    num_remasked_T = num_remasked_T.index_add(
        0, active.position_N, is_remasked_N.to(num_remasked_T.dtype)
    )
    return is_remasked_N, replace(state, num_remasked_T=num_remasked_T)
