"""One denoise step of a window: logits of its active positions -> what to commit.

The seam between the decoding rules and whatever runs the model. A request has one `Decoder`, which
never changes, and a `RuleState`, of which every step returns the next. The caller

1. asks `Decoder.active` which positions of the window need logits;
2. runs the model and hands their rows to `denoise`;
3. writes `Commitment.ids_N` where `is_committed_N`, and masks again where `is_remasked_N`;
4. goes on with `state.open_window()` when the window holds no mask any more.

N active positions, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from a2d_ray.config import AR_RULES
from a2d_ray.diffusion import decoding
from a2d_ray.generation.decoding.decoder import (
    Active,
    Commitment,
    Decoder,
    RuleState,
    TokenLogprob,
    check_grammar,
)
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.decoding.rules import remask, remember, select

__all__ = [
    "Active",
    "Commitment",
    "Decoder",
    "RuleState",
    "TokenLogprob",
    "check_grammar",
    "denoise",
    "propose",
]


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

    Raises:
        FloatingPointError: logits that are NaN or infinite.
    """
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
    commitment = Commitment(
        ids_N=ids_N,
        logprob_N=logprob_N,
        is_committed_N=is_committed_N,
        is_remasked_N=is_remasked_N,
        top_ids_NK=top.indices,
        top_logprobs_NK=top.values,
    )
    return commitment, replace(state, step=state.step + 1)


def propose(
    logits_MV: Tensor, active: Active, decoder: Decoder, state: RuleState
) -> tuple[Tensor, Tensor]:
    """Drafts: the tokens that M masked positions would take, int64 [M], and their confidences.

    They are drawn as the AR mode will draw at the same position, with the same noise, so that they
    agree with it most often. A grammar does not bind them.

    Args:
        logits_MV: changed in place where it is float32.
        active: the positions.
        decoder: the request.
        state: what it remembers.
    """
    logits_MV = logits_MV.float()
    _edit(logits_MV, active.position_N, replace(decoder, grammar=None), state.answer_counts_V)
    ids_M = _choose(logits_MV, active, decoder, state)
    return ids_M, decoding.token_logprobs(logits_MV, ids_M).exp()


def _edit(
    logits_NV: Tensor, position_N: Tensor, decoder: Decoder, answer_counts_V: Tensor | None
) -> None:
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
        return decoding.most_likely(logits_NV)
    likely_NV = decoding.keep_likely(
        logits_NV / params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
    )
    if params.rule not in AR_RULES:
        return decoding.draw(likely_NV, decoder.uniform(active.position_N, state.step))
    noise_NV = decoding.token_gumbel(
        active.position_N, likely_NV.shape[-1], seed=params.seed, choice=decoder.choice
    )
    return decoding.most_likely(likely_NV + noise_NV)


def _has_penalties(params: SamplingParams) -> bool:
    """Whether any penalty is asked for."""
    asked = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1)
    return any(value != 0 for value in asked)


def _penalize(
    logits_NV: Tensor,
    params: SamplingParams,
    known_ids: Sequence[int],
    answer_counts_V: Tensor | None,
) -> None:
    """Lowers, in place, the logits of tokens that were used before.

    Repetition (of the prompt or the answer) divides positive logits and multiplies negative ones;
    frequency takes penalty x count, presence takes the penalty once, both of the answer alone.

    Args:
        logits_NV: float32.
        params: the penalties.
        known_ids: the prompt.
        answer_counts_V: how often each id is committed; None: none is.

    Source: repetition: CTRL, arXiv 1909.05858; the others: OpenAI's API.
    """
    counts_V = answer_counts_V
    if counts_V is None:
        counts_V = logits_NV.new_zeros(logits_NV.shape[-1], dtype=torch.int64)
    is_used_V = counts_V > 0
    is_used_V[list(known_ids)] = True
    factor_V = torch.where(is_used_V, params.repetition_penalty, 1.0)
    logits_NV.copy_(torch.where(logits_NV > 0, logits_NV / factor_V, logits_NV * factor_V))
    logits_NV -= params.frequency_penalty * counts_V + params.presence_penalty * (counts_V > 0)
