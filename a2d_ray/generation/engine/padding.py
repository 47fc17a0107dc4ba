"""Rounds of few shapes: what a round brings is padded to a bucket, so that graphs can be replayed.

A padded round decides what the round decides. Padding rows of the layers write to a scratch slot
and read one key. Padding rows of the head belong to a request that nobody made.

N tokens of a round, T rows of a call's spans, P spans, M rows whose token is drawn; see `spans`,
`plan` and `Batch`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from a2d_ray.generation.decoding.batch import Batch, Draws, Group
from a2d_ray.generation.engine.plan import HeadRows, RoundTokens
from a2d_ray.generation.engine.spans import SpanPlan, Spans

SEGMENTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
SPANS = (*SEGMENTS, 192, 256, 384, 512, 768, 1024)
PARTS = (2, 4, 8)  # spans in which a row may lie, on average, where it lies in several
ASKED_ROWS = 64  # the head's rows come in steps of this
MOST_ASKED_ROWS = 2048  # decided together; see `runner.DEVICE_ROWS`
FEWEST_KEYS = 256  # where the kernel computes as many keys as the widest span has
# What changes the shape of a decision with every step.
_ODD_OPTIONS = (
    "penalties",
    "bias",
    "suppressed",
    "early",
    "allowed",
    "begin_suppressed",
    "top_T",
)


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The shapes of an engine's rounds.

    Attributes:
        units: rows of a segment, ascending: one (a token of the AR mode), and blocks.
        scratch: slot that nobody reads but padding; the last one.
        num_requests: of a padded decision; one of them is nobody's.
        is_flash: whether attention costs what a span has, however wide the widest is.
    """

    units: tuple[int, ...]
    scratch: int
    num_requests: int
    is_flash: bool

    @property
    def most_rows(self) -> int:
        """Tokens of the largest padded round."""
        return self.units[-1] * SEGMENTS[-1]

    def most_keys(self, num_keys: int) -> int:
        """Width of the widest span, as the kernel is told."""
        most = self.scratch + 1
        if self.is_flash:
            return most
        return min(max(FEWEST_KEYS, _power_of_two(num_keys)), most)

    def width(self, num_places: int) -> int:
        """Places of a request in a padded decision."""
        return self.units[-1] if num_places <= self.units[-1] else _power_of_two(num_places)


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """Shape of a padded round's tokens.

    Attributes:
        num_rows: N.
        unit: rows of a padding span, and of the longest span.
        most_keys: of a span.
        calls: (T, P) of each.
    """

    num_rows: int
    unit: int
    most_keys: int
    calls: tuple[tuple[int, int], ...]


def token_shape(tokens: RoundTokens, buckets: Buckets) -> TokenShape | str:
    """The bucket of a round's tokens, or why there is none."""
    plan = tokens.spans
    if plan is None or plan.slot_N is None:
        return "nothing is stored"
    widest = max(call.most_rows for call in plan.calls)
    unit = next((unit for unit in buckets.units if unit >= widest), None)
    if unit is None:
        return "a segment is longer than a block"
    if plan.row_T is None and plan.calls[0].is_causal:
        return "only prompts, read causally"
    num_tokens = len(tokens.id_N) + (tokens.noised_row_M is not None)
    num_segments = _bucket(-(-num_tokens // unit), SEGMENTS)
    if num_segments is None:
        return "more tokens than the largest bucket"
    num_rows = num_segments * unit
    calls = []
    for call in plan.calls:
        is_single = plan.row_T is None or call.is_causal
        parts = (1,) if is_single else PARTS
        num_call_rows = next((num_rows * k for k in parts if num_rows * k >= _rows(call)), 0)
        num_padding = -(-(num_call_rows - _rows(call)) // unit)
        num_spans = _bucket(len(call.num_keys_P) + num_padding, SPANS)
        if not num_call_rows or num_spans is None:
            return "more spans than the largest bucket"
        calls.append((num_call_rows, num_spans))
    most_keys = buckets.most_keys(max(call.most_keys for call in plan.calls))
    return TokenShape(num_rows=num_rows, unit=unit, most_keys=most_keys, calls=tuple(calls))


def pad_tokens(tokens: RoundTokens, shape: TokenShape, buckets: Buckets) -> RoundTokens:
    """The round in its bucket, on the CPU.

    Args:
        tokens: of the round.
        shape: see `token_shape`.
        buckets: name the scratch slot.
    """
    plan = tokens.spans
    assert plan is not None and plan.slot_N is not None
    num_rows = shape.num_rows
    calls = tuple(
        _pad_spans(call, size, shape, buckets.scratch, is_whole=plan.row_T is None)
        for call, size in zip(plan.calls, shape.calls, strict=True)
    )
    spans = SpanPlan(
        slot_N=_pad(plan.slot_N, num_rows, buckets.scratch),
        calls=calls,
        row_T=None if plan.row_T is None else _merged_rows(plan, shape),
    )
    noised_row_M = tokens.noised_row_M
    if noised_row_M is not None:  # what is added to padding rows is nobody's
        num_tokens = len(tokens.id_N)
        padding_M = torch.arange(num_rows - len(noised_row_M)) % (num_rows - num_tokens)
        noised_row_M = torch.cat([noised_row_M, num_tokens + padding_M])
    is_noised_N = tokens.is_noised_N
    return replace(
        tokens,
        id_N=_pad(tokens.id_N, num_rows, 0),
        position_N=_pad(tokens.position_N, num_rows, 0),
        is_noised_N=None if is_noised_N is None else _pad(is_noised_N, num_rows, False),
        noised_row_M=noised_row_M,
        spans=spans,
        is_padded=True,
    )


def usual_tokens(
    buckets: Buckets, num_requests: int, unit: int, *, is_gated: bool
) -> Iterator[RoundTokens]:
    """Padded rounds of no tokens, in the shapes of up to so many denoising requests.

    Each request brings a segment, or two where it commits a block; the keys of each lie in one run
    of slots, or in two where a prefix is shared.

    Args:
        buckets: the shapes.
        num_requests: that run at once.
        unit: rows of a segment.
        is_gated: whether the model has gated adapters.
    """
    most = 2 * num_requests if unit > 1 else num_requests
    sizes = [size for size in SEGMENTS if size <= (_bucket(most, SEGMENTS) or SEGMENTS[-1])]
    for size in reversed(sizes):
        for parts in (2, 1):
            shape = TokenShape(
                num_rows=size * unit,
                unit=unit,
                most_keys=buckets.most_keys(1),
                calls=((parts * size * unit, parts * size),),
            )
            tokens = _no_tokens(is_merged=parts > 1, is_gated=is_gated)
            yield pad_tokens(tokens, shape, buckets)


def _no_tokens(*, is_merged: bool, is_gated: bool) -> RoundTokens:
    none = torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int32)
    call = Spans(
        row_T=none if is_merged else None,
        first_row_P=zero,
        first_slot_P=zero,
        num_keys_P=zero[:0],
        most_rows=0,
        most_keys=0,
        is_causal=False,
    )
    return RoundTokens(
        id_N=none,
        position_N=none,
        is_noised_N=none.bool() if is_gated else None,
        noised_row_M=none if is_gated else None,
        slices=(),
        spans=SpanPlan(slot_N=none, calls=(call,), row_T=none if is_merged else None),
    )


def _pad_spans(
    spans: Spans, size: tuple[int, int], shape: TokenShape, scratch: int, *, is_whole: bool
) -> Spans:
    """Padding rows lie in spans of one key, behind the others; what is left over has no rows."""
    num_rows, num_spans = size
    num_padding = num_spans - len(spans.num_keys_P)
    ends = _rows(spans) + shape.unit * torch.arange(1, num_padding + 1, dtype=torch.int32)
    slots = torch.full((num_padding + 1,), scratch, dtype=torch.int32)
    return replace(
        spans,
        row_T=None if is_whole or spans.row_T is None else _pad(spans.row_T, num_rows, 0),
        first_row_P=torch.cat([spans.first_row_P, ends.clamp(max=num_rows)]),
        first_slot_P=torch.cat([spans.first_slot_P[:-1], slots]),
        num_keys_P=_pad(spans.num_keys_P, num_spans, 1),
        most_rows=shape.unit,
        most_keys=shape.most_keys,
    )


def _merged_rows(plan: SpanPlan, shape: TokenShape) -> Tensor:
    """Rows of all spans; those of padding are behind the N, where the merged output is cut off."""
    rows = [
        _pad(call.row_T, num_rows, shape.num_rows)
        for call, (num_rows, _) in zip(plan.calls, shape.calls, strict=True)
        if call.row_T is not None
    ]
    return torch.cat(rows)


def why_not_head(head: HeadRows, buckets: Buckets) -> str | None:
    """Why a decision is in no bucket; None: it is."""
    if len(head.batches) != 1:
        return "more rows than are decided together"
    if head.guided_G is not None:
        return "guidance"
    (batch,) = head.batches
    if len(batch.groups) != 1:
        return "several rules"
    if batch.groups[0].before is not None:
        return "a rule that remembers"
    odd = next((name for name in _ODD_OPTIONS if getattr(batch, name) is not None), None)
    if odd is not None:
        return f"option: {odd}"
    return "more requests than may run" if batch.num_requests >= buckets.num_requests else None


def usual_asked_rows(most: int) -> list[int]:
    """Rows of padded decisions about up to so many places, the largest first."""
    return list(range(next_step(min(most, MOST_ASKED_ROWS) + 1), 0, -ASKED_ROWS))


def pad_head(head: HeadRows, buckets: Buckets, num_rows: int = 0) -> HeadRows:
    """A decision in its bucket, on the CPU.

    Args:
        head: what `why_not_head` has nothing against.
        buckets: number of requests, and places of each.
        num_rows: at least so many rows.
    """
    (batch,) = head.batches
    num_rows = max(num_rows, next_step(len(batch.place_N) + 1))  # there is always a padding row
    width = buckets.width(batch.width)
    place_N = batch.place_N // batch.width * width + batch.place_N % batch.width
    nobody = buckets.num_requests - 1
    may_fall_N = batch.may_fall_N
    padded = replace(
        batch,
        num_requests=buckets.num_requests,
        width=width,
        place_N=_pad(place_N, num_rows, nobody * width),
        position_N=_pad(batch.position_N, num_rows, 0),
        id_N=_pad(batch.id_N, num_rows, 0),
        is_masked_N=_pad(batch.is_masked_N, num_rows, False),
        draws=tuple(_pad_draws(draws, batch, num_rows) for draws in batch.draws),
        groups=(_pad_group(batch.groups[0], num_rows, buckets.num_requests),),
        remask_N=None if batch.remask_N is None else _pad(batch.remask_N, num_rows, 0),
        may_fall_N=None if may_fall_N is None else _pad(may_fall_N, num_rows, False),
    )
    row_R = _pad(head.row_R, num_rows, 0)
    return replace(head, row_R=row_R, batches=(padded,), is_padded=True)


def next_step(num_rows: int) -> int:
    """Rows of a decision, padded."""
    return -(-num_rows // ASKED_ROWS) * ASKED_ROWS


def _pad_draws(draws: Draws, batch: Batch, num_rows: int) -> Draws:
    """Padding rows draw from all tokens."""
    row_M = draws.row_M
    if row_M is not None:
        num_rows = next_step(len(row_M))
        row_M = _pad(row_M, num_rows, len(batch.place_N))
    fills = {"top_k_M": 0, "top_p_M": 1, "log_min_p_M": -torch.inf, "u_M": 0.5, "start_M": 0}
    values = {name: getattr(draws, name) for name in fills}
    padded = {n: None if x is None else _pad(x, num_rows, fills[n]) for n, x in values.items()}
    return replace(
        draws,
        row_M=row_M,
        temperature_M1=_pad_column(draws.temperature_M1, num_rows, 1),
        most_k=max(ASKED_ROWS, _power_of_two(draws.most_k)) if draws.most_k else 0,
        **padded,
    )


def _pad_group(group: Group, num_rows: int, num_requests: int) -> Group:
    def column(values_R1: Tensor, fill: float) -> Tensor:
        return _pad_column(values_R1, num_requests, fill)

    return replace(
        group,
        requests=(0, num_requests),
        rows=(0, num_rows),
        options={name: column(values_R1, 0) for name, values_R1 in group.options.items()},
        count_R1=column(group.count_R1, 1),
        kind_R1=None if group.kind_R1 is None else column(group.kind_R1, 0),
        u_N=None if group.u_N is None else _pad(group.u_N, num_rows, 0),
    )


def _rows(spans: Spans) -> int:
    """T."""
    return int(spans.first_row_P[-1])


def _pad(values: Tensor, size: int, fill: Any) -> Tensor:
    return functional.pad(values, (0, size - len(values)), value=fill)


def _pad_column(values_R1: Tensor, size: int, fill: float) -> Tensor:
    return functional.pad(values_R1, (0, 0, 0, size - len(values_R1)), value=fill)


def _bucket(number: int, buckets: Sequence[int]) -> int | None:
    return next((size for size in buckets if size >= number), None)


def _power_of_two(number: int) -> int:
    """The next one."""
    return 1 << max(number - 1, 0).bit_length()
