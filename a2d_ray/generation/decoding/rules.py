"""Which active positions a request's rule commits, and which it masks again.

N active positions, M masked ones among them, V vocabulary, B block, T canvas.
"""

from dataclasses import replace

import torch
from torch import Tensor

from a2d_ray.diffusion import decoding
from a2d_ray.generation.decoding.canvas import Canvas
from a2d_ray.generation.decoding.decoder import Active, Decoder, RuleState


def remember(logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState) -> RuleState:
    """The state with what the rule needs of earlier steps."""
    keep = MEMORIES.get(decoder.params.rule)
    return state if keep is None else keep(logits_NV, active, decoder, state)


def _schedule(logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState) -> RuleState:
    """With the tokens of each step of the window, from its first step on."""
    if state.step > 0:
        return state
    return replace(state, counts=window_counts(active.position_N, decoder))


def _changes(logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState) -> RuleState:
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
        num_stable_N[was_N] = is_still_M * (state.num_stable_N[row_M] + 1)  # type: ignore[index]
    return replace(state, position_N=position_N, logp_NV=logp_NV, num_stable_N=num_stable_N)


MEMORIES = {"steps": _schedule, "klass": _changes}
"""The rules that remember something, and what."""


def window_counts(position_N: Tensor, decoder: Decoder) -> tuple[int, ...]:
    """Tokens that each step of a window commits under rule ``steps``.

    Args:
        position_N: the window's masked positions.
        decoder: the request.
    """
    params = decoder.params
    canvas = decoder.canvas
    num_steps = decoding.steps_per_block(params.steps, canvas.num_blocks, canvas.block_size)
    u_SN = None
    if params.stochastic_transfer:
        steps = [decoder.uniform(position_N, s, decoding.COUNT) for s in range(num_steps)]
        u_SN = torch.stack(steps)
    return tuple(decoding.commit_counts(len(position_N), num_steps, u_SN=u_SN))


def select(
    ids_N: Tensor,
    confidence_N: Tensor,
    logits_NV: Tensor,
    active: Active,
    decoder: Decoder,
    state: RuleState,
) -> Tensor:
    """Which masked positions the rule commits; bool [N]."""
    params = decoder.params
    rows_N = active.is_masked_N
    confidence_M = confidence_N[rows_N]
    position_M = active.position_N[rows_N]
    masked = decoding.Masked(
        confidence_N=confidence_M,
        logits_NV=logits_NV if params.remask_threshold == 0 else logits_NV[rows_N],
        position_N=position_M,
        order_N=_order(confidence_M, position_M, decoder, state.step),
        count=(*state.counts[state.step :], 1)[0],  # no counts are left when masks came back
        num_stable_N=None if state.num_stable_N is None else state.num_stable_N[rows_N],
    )
    if decoder.is_reference and params.rule == "steps":
        chosen_M = _topk_of_block(masked, decoder.canvas)
    else:
        chosen_M = decoding.SELECTORS[params.rule](masked, params)
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


def _topk_of_block(masked: decoding.Masked, canvas: Canvas) -> Tensor:
    """`select_top` with ties as the public sampler has them: torch.topk over the block."""
    block_T = torch.tensor(canvas.blocks)
    score_T = torch.full((len(canvas),), -torch.inf, dtype=masked.order_N.dtype)
    score_T[masked.position_N] = masked.order_N
    place_B = (block_T == block_T[masked.position_N[0]]).nonzero()[:, 0]
    best = score_T[place_B].topk(masked.count).indices
    return torch.isin(masked.position_N, place_B[best])


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


def remask(
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
