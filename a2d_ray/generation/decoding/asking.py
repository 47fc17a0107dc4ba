"""From what requests ask to the `Batch` of a step. Runs on the host, once a round.

R requests, N rows (asked positions of all requests, one after the other).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from a2d_ray.config import AR_RULES, RULES
from a2d_ray.diffusion import decoding
from a2d_ray.diffusion.rules import SELECTORS, Masked
from a2d_ray.generation.decoding.batch import (
    REMASKINGS,
    Allowed,
    Batch,
    Before,
    Draws,
    Group,
    Pairs,
    Penalties,
)
from a2d_ray.generation.decoding.decoder import Active, Decoder, Inquiry, RuleState
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.decoding.schedule import with_schedule

MOST_REMASKED = 3  # how often a position may be masked again, so that every window ends


def inquire(decoder: Decoder, active: Active, state: RuleState) -> Inquiry:
    """What a request asks, with its schedule, and what its grammar allows.

    Raises:
        Exception: whatever its grammar raises.
    """
    allowed: list[Tensor] = []
    if decoder.grammar is not None:
        allowed = [decoder.grammar.allowed()]
        if len(active.ids) > 1 and decoder.params.rule in AR_RULES:
            allowed += decoder.grammar.allowed_after(active.ids[:-1])
    asked = Inquiry(decoder=decoder, active=active, state=state, allowed=tuple(allowed))
    return with_schedule(asked)


def by_rule(asked: Sequence[Inquiry]) -> list[int]:
    """An order of requests in which those of one rule lie side by side."""
    return sorted(range(len(asked)), key=lambda i: asked[i].decoder.params.rule)


def make_batch(asked: Sequence[Inquiry]) -> Batch:
    """The tensors of a step, on the CPU.

    Args:
        asked: at least one; those of one rule lie side by side (`by_rule`).
    """
    rows = _Rows(asked)
    width = max(map(len, rows.of_request))
    columns = [column for own in rows.of_request for column in range(len(own))]
    remask = [a.decoder.params.remask_threshold for a in asked]
    num_top = max(a.decoder.params.logprobs or 0 for a in asked)
    is_topped = [bool(a.decoder.params.logprobs) for a in asked]
    decoder = asked[0].decoder
    return Batch(
        num_requests=len(asked),
        width=width,
        place_N=_int([r * width + c for r, c in zip(rows.request, columns, strict=True)]),
        position_N=rows.position_N,
        id_N=_int([i for a in asked for i in a.active.ids]),
        is_masked_N=torch.tensor([m for a in asked for m in a.active.is_masked]),
        mask_id=None if decoder.is_reference else decoder.mask_id,
        penalties=_penalties(rows),
        bias=_bias(rows),
        suppressed=rows.pairs(lambda a: a.decoder.params.suppress_tokens),
        early=_early(rows),
        allowed=_allowed(rows),
        begin_suppressed=rows.pairs(lambda a: a.decoder.params.begin_suppress_tokens),
        draws=_draws(rows),
        groups=_groups(rows),
        remask_N=_float(rows.spread(remask)) if any(remask) else None,
        may_fall_N=_may_fall(asked) if any(remask) else None,
        top_T=rows.where(is_topped) if num_top else None,
        num_top=num_top,
    )


@dataclass
class _Rows:
    """Which rows belong to whom."""

    asked: Sequence[Inquiry]
    of_request: list[range] = field(init=False)
    request: list[int] = field(init=False)
    position_N: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.of_request = []
        first = 0
        for one in self.asked:
            stop = first + len(one.active.positions)
            self.of_request.append(range(first, stop))
            first = stop
        self.request = [r for r, own in enumerate(self.of_request) for _ in own]
        self.position_N = _int([p for a in self.asked for p in a.active.positions])

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """A value per request as one per row."""
        return [values[r] for r in self.request]

    def where(self, is_asked: Sequence[bool]) -> Tensor:
        """Rows of some requests."""
        return _int([row for row, r in enumerate(self.request) if is_asked[r]])

    def pairs(self, ids_of: Callable[[Inquiry], Collection[int]]) -> Pairs | None:
        """All pairs of a request's rows with its ids; None: there are none."""
        found = [
            (row, token, 0.0)
            for one, own in zip(self.asked, self.of_request, strict=True)
            if (ids := ids_of(one))
            for row in own
            for token in ids
        ]
        return _pairs(found) if found else None


def _int(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _float(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _pairs(found: Sequence[tuple[int, int, float]]) -> Pairs:
    row, token, value = zip(*found, strict=True) if found else ((), (), ())
    return Pairs(row_U=_int(row), id_U=_int(token), value_U=_float(value))


def _bias(rows: _Rows) -> Pairs | None:
    found = [
        (row, token, bias)
        for one, own in zip(rows.asked, rows.of_request, strict=True)
        if one.decoder.params.logit_bias
        for row in own
        for token, bias in one.decoder.params.logit_bias.items()
    ]
    return _pairs(found) if found else None


def _early(rows: _Rows) -> Pairs | None:
    """Ends that may not come yet."""
    found = []
    for one, own in zip(rows.asked, rows.of_request, strict=True):
        decoder = one.decoder
        if decoder.params.min_tokens == 0 or decoder.canvas.is_infill:
            continue
        stop = decoder.canvas.start + decoder.params.min_tokens
        places = zip(own, one.active.positions, strict=True)
        early = [row for row, position in places if position < stop]
        found += [(row, token, 0.0) for row in early for token in decoder.stop_ids]
    return _pairs(found) if found else None


def has_penalties(params: SamplingParams) -> bool:
    """Whether any penalty is asked for."""
    asked = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1)
    return any(value != 0 for value in asked)


def _penalties(rows: _Rows) -> Penalties | None:
    is_asked = [has_penalties(a.decoder.params) for a in rows.asked]
    if not any(is_asked):
        return None
    own = [(a, n) for a, n, asks in zip(rows.asked, rows.of_request, is_asked, strict=True) if asks]
    used = [(p, i, c) for p, (a, _) in enumerate(own) for i, c in a.state.answer_counts.items()]
    known = [(p, i, 1.0) for p, (a, _) in enumerate(own) for i in set(a.decoder.canvas.known_ids)]
    added = []
    num_rows = 0
    for one, its_rows in own:
        if one.decoder.params.rule in AR_RULES:
            drafts = list(one.active.ids[:-1])
            added += [(num_rows + j, i, 1.0) for j in range(len(its_rows)) for i in drafts[:j]]
        num_rows += len(its_rows)
    values = [
        (p, a.decoder.params.repetition_penalty, a.decoder.params.frequency_penalty,
         a.decoder.params.presence_penalty)
        for p, (a, n) in enumerate(own)
        for _ in n
    ]  # fmt: skip
    request, repetition, frequency, presence = zip(*values, strict=True)
    return Penalties(
        used=_pairs(used),
        known=_pairs(known),
        added=_pairs(added) if added else None,
        num_requests=len(own),
        row_M=rows.where(is_asked),
        request_M=_int(request),
        repetition_M1=_float(repetition)[:, None],
        frequency_M1=_float(frequency)[:, None],
        presence_M1=_float(presence)[:, None],
    )


def _allowed(rows: _Rows) -> Allowed | None:
    """The first row of a request obeys its grammar; in the AR mode those behind drafts do, too."""
    bound: list[int] = []
    allowed: list[Tensor] = []
    ends: list[tuple[int, int, float]] = []
    for one, own in zip(rows.asked, rows.of_request, strict=True):
        for row, mask_V in zip(own, one.allowed, strict=False):
            ends += [(len(bound), token, 0.0) for token in one.decoder.stop_ids]
            bound.append(row)
            allowed.append(mask_V)
    if not bound:
        return None
    return Allowed(row_G=_int(bound), allowed_GV=torch.stack(allowed), ends=_pairs(ends))


def _draws(rows: _Rows) -> tuple[Draws, ...]:
    """One for the rules of the AR mode, one for the others."""
    made = []
    for is_ar in (False, True):
        is_asked = [
            a.decoder.params.temperature > 0 and (a.decoder.params.rule in AR_RULES) == is_ar
            for a in rows.asked
        ]
        if any(is_asked):
            made.append(_draws_of(rows, is_asked, is_ar=is_ar))
    return tuple(made)


def _draws_of(rows: _Rows, is_asked: Sequence[bool], *, is_ar: bool) -> Draws:
    row_M = rows.where(is_asked)
    params = [rows.asked[r].decoder.params for r in rows.request if is_asked[r]]
    position_M = rows.position_N[row_M]
    seed_M = _int([p.seed for p in params])
    choice_M = _int([rows.asked[r].decoder.choice for r in rows.request if is_asked[r]])
    u_M = start_M = None
    if is_ar:
        start_M = decoding.gumbel_starts(position_M, seed=seed_M, choice=choice_M)
    else:
        step_M = _int([rows.asked[r].state.step for r in rows.request if is_asked[r]])
        u_M = decoding.position_uniform(position_M, seed=seed_M, step=step_M, choice=choice_M)
    top_k = [p.top_k for p in params]
    return Draws(
        row_M=None if len(row_M) == len(rows.request) else row_M,
        temperature_M1=_float([p.temperature for p in params])[:, None],
        top_k_M=_int(top_k) if any(top_k) else None,
        most_k=max(top_k),
        top_p_M=_float([p.top_p for p in params]) if any(p.top_p < 1 for p in params) else None,
        log_min_p_M=_float([math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params])
        if any(p.min_p > 0 for p in params)
        else None,
        u_M=u_M,
        start_M=start_M,
    )


def _groups(rows: _Rows) -> tuple[Group, ...]:
    groups = []
    numbered = enumerate(rows.asked)
    for rule, members in groupby(numbered, key=lambda pair: pair[1].decoder.params.rule):
        own = list(members)
        first = own[0][0]
        stop = own[-1][0] + 1
        own_rows = rows.of_request[first].start, rows.of_request[stop - 1].stop
        groups.append(_group(rule, [one for _, one in own], (first, stop), own_rows, rows))
    return tuple(groups)


def _group(
    rule: str,
    own: Sequence[Inquiry],
    requests: tuple[int, int],
    own_rows: tuple[int, int],
    rows: _Rows,
) -> Group:
    params = [one.decoder.params for one in own]
    select = SELECTORS[rule]
    if own[0].decoder.is_reference and rule == "steps":
        select = partial(_topk_of_block, blocks=own[0].decoder.canvas.blocks)
    kinds = [REMASKINGS.index(p.remasking) for p in params]
    u_N = None
    if REMASKINGS.index("random") in kinds:
        each = [one for one in own for _ in one.active.positions]
        u_N = decoding.position_uniform(
            rows.position_N[slice(*own_rows)],
            seed=_int([one.decoder.params.seed for one in each]),
            step=_int([one.state.step for one in each]),
            choice=_int([one.decoder.choice for one in each]),
            kind=decoding.ORDER,
        )
    return Group(
        rule=rule,
        requests=requests,
        rows=own_rows,
        select=select,
        options=_options(rule, params),
        # No counts are left when masks came back.
        count_R1=_int([(*one.state.counts[one.state.step :], 1)[0] for one in own])[:, None],
        kind_R1=_int(kinds)[:, None] if any(kinds) else None,
        u_N=u_N,
        before=_before(own) if rule == "klass" else None,
    )


def _options(rule: str, params: Sequence[SamplingParams]) -> dict[str, Tensor]:
    """The rule's numbers, one column each; what is no number is the host's business."""
    options = {}
    for name in RULES[rule]:
        values = [getattr(p, name) for p in params]
        if all(isinstance(value, float) for value in values):
            options[name] = _float(values)[:, None]
    return options


def _before(own: Sequence[Inquiry]) -> Before:
    tensors: list[Tensor] = []
    firsts: dict[int, int] = {}
    row: list[int] = []
    had: list[bool] = []
    num_stable: list[int] = []
    for one in own:
        memory = one.state.memory
        if memory is not None and id(memory.logp_MV) not in firsts:
            firsts[id(memory.logp_MV)] = sum(map(len, tensors))
            tensors.append(memory.logp_MV)
        for position in one.active.positions:
            known = None if memory is None else memory.rows.get(position)
            had.append(known is not None)
            if memory is None or known is None:
                row.append(0)
                num_stable.append(0)
            else:
                row.append(firsts[id(memory.logp_MV)] + known)
                num_stable.append(memory.num_stable[position])
    return Before(
        logp=tuple(tensors),
        row_M=_int(row),
        had_M=torch.tensor(had),
        num_stable_M=_int(num_stable),
    )


def _may_fall(asked: Sequence[Inquiry]) -> Tensor:
    return torch.tensor(
        [
            not is_masked and a.state.num_remasked.get(position, 0) < MOST_REMASKED
            for a in asked
            for position, is_masked in zip(a.active.positions, a.active.is_masked, strict=True)
        ]
    )


def _topk_of_block(masked: Masked, options: Any, *, blocks: Sequence[int]) -> Tensor:
    """`select_top` with ties as the public sampler has them: torch.topk over the block."""
    is_masked_B = masked.is_masked_RB[0]
    position_M = masked.position_RB[0, is_masked_B]
    order_M = masked.order_RB[0, is_masked_B]
    block_T = torch.tensor(blocks)
    score_T = torch.full((len(blocks),), -torch.inf, dtype=order_M.dtype)
    score_T[position_M] = order_M
    place_K = (block_T == block_T[position_M[0]]).nonzero()[:, 0]
    best = score_T[place_K].topk(int(masked.count_R1)).indices
    return torch.isin(masked.position_RB, place_K[best])
