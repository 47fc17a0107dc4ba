"""Attention of a round on an accelerator: one call per layer, whatever the number of requests.

A *span* is rows of a request that see the same keys, once for every run of slots that those keys
lie in. Rows with several spans get the results of all, weighted by their log-sum-exps. There are no
pages and no masks: a span is (its rows, first slot, number of keys).

A span may be causal: its last row sees all its keys, each row before it one less. These need a
second call.

N tokens of a round, T rows of all spans (a row counts once per span), P spans, H query heads, K
key/value heads, d head width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from a2d_ray.generation.engine.cache import Runs, split_runs
from a2d_ray.generation.engine.work import Work

Kernel = Callable[["Spans", Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(spans, query [T, H, d], keys, values [slots, K, d], scale) -> [T, H, d], log-sum-exps [T, H]."""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Spans of one call.

    Attributes:
        row_T: which of the N each row is, int64; None: they are the N in their order.
        first_row_P: where each span's rows begin, and the end; int32 [P + 1].
        first_slot_P: where its keys begin; int32 [P + 1], the last one does not count.
        num_keys_P: int32.
        most_rows, most_keys: of a span.
        is_causal: see the module.
    """

    row_T: Tensor | None
    first_row_P: Tensor
    first_slot_P: Tensor
    num_keys_P: Tensor
    most_rows: int
    most_keys: int
    is_causal: bool


@dataclass(frozen=True, kw_only=True)
class SpanPlan:
    """What the layers of a round need.

    Attributes:
        slot_N: where the new keys and values go, int64; None: they are stored nowhere.
        calls: spans of each call.
        row_T: rows of all spans, int64; None: each of the N has one span, in the N's order.
    """

    slot_N: Tensor | None
    calls: tuple[Spans, ...]
    row_T: Tensor | None


@dataclass(frozen=True)
class _Span:
    first_row: int
    num_rows: int
    first_slot: int
    num_keys: int


def plan_spans(works: Sequence[Work]) -> SpanPlan:
    """Spans of a round, on the CPU."""
    plain: list[_Span] = []
    causal: list[_Span] = []
    slots: list[int] = []
    first = 0
    for work in works:
        runs = work.all_runs or [(first, first + work.num_tokens)]  # the new tokens themselves
        slots += [slot for start, stop in work.new_runs or () for slot in range(start, stop)]
        for span, is_causal in _spans_of(work, runs, first):
            (causal if is_causal else plain).append(span)
        first += work.num_tokens
    calls = [_spans(own, is_causal=own is causal) for own in (plain, causal) if own]
    rows = [row for own in (plain, causal) for span in own for row in _rows(span)]
    is_plain = len(calls) == 1 and rows == list(range(first))
    if is_plain:
        calls = [_spans(plain or causal, is_causal=not plain, is_whole=True)]
    return SpanPlan(
        slot_N=torch.tensor(slots) if slots else None,
        calls=tuple(calls),
        row_T=None if is_plain else torch.tensor(rows),
    )


def _spans_of(work: Work, runs: Runs, first: int) -> Iterator[tuple[_Span, bool]]:
    """Spans of a work, and whether they are causal."""
    row = 0
    for num_keys, is_causal, num_rows in _stretches(work.num_visible):
        shared = num_keys - num_rows if is_causal else num_keys
        yield from _prefix(runs, shared, first + row, num_rows)
        if is_causal:
            yield from _diagonal(runs, shared, first + row, num_rows)
        row += num_rows
    if work.sight is not None:
        _, own = split_runs(runs, work.sight.num_common)
        for hidden, same in groupby(work.sight.hidden_mS.tolist()):
            num_rows = len(list(same))
            yield from _prefix(runs, work.sight.num_common, first + row, num_rows)
            for start, stop in _seen(own, hidden):
                yield _Span(first + row, num_rows, start, stop - start), False
            row += num_rows


def _stretches(num_visible: Sequence[int]) -> Iterator[tuple[int, bool, int]]:
    """(keys of the last row, whether each row before it sees one less, rows)."""
    index = 0
    while index < len(num_visible):
        stop = index + 1
        while stop < len(num_visible) and num_visible[stop] == num_visible[index]:
            stop += 1
        is_causal = stop == index + 1
        while is_causal and stop < len(num_visible) and _goes_on(num_visible, stop):
            stop += 1
        yield num_visible[stop - 1], is_causal and stop > index + 1, stop - index
        index = stop


def _goes_on(num_visible: Sequence[int], index: int) -> bool:
    """Whether a row sees one key more than the one before, and is not the first of equal ones."""
    is_next = num_visible[index] == num_visible[index - 1] + 1
    return is_next and num_visible[index + 1 : index + 2] != [num_visible[index]]


def _prefix(
    runs: Runs, num_keys: int, first_row: int, num_rows: int
) -> Iterator[tuple[_Span, bool]]:
    """Rows that see the first keys."""
    for start, stop in split_runs(runs, num_keys)[0] if num_keys else ():
        yield _Span(first_row, num_rows, start, stop - start), False


def _diagonal(
    runs: Runs, num_shared: int, first_row: int, num_rows: int
) -> Iterator[tuple[_Span, bool]]:
    """Rows that see each other up to themselves; a run of their keys ends a causal span."""
    _, rest = split_runs(runs, num_shared)
    done = 0
    for start, stop in split_runs(rest, num_rows)[0]:
        length = stop - start
        yield _Span(first_row + done, length, start, length), True
        done += length
        if done < num_rows:  # the rows behind see all of this run
            yield _Span(first_row + done, num_rows - done, start, length), False


def _seen(runs: Runs, hidden: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Runs of the slots that are not hidden."""
    slots = [slot for start, stop in runs for slot in range(start, stop)]
    seen = [slot for slot, is_hidden in zip(slots, hidden, strict=False) if not is_hidden]
    for _, neighbours in groupby(enumerate(seen), key=lambda pair: pair[1] - pair[0]):
        run = [slot for _, slot in neighbours]
        yield run[0], run[-1] + 1


def _rows(span: _Span) -> range:
    return range(span.first_row, span.first_row + span.num_rows)


def _spans(own: Sequence[_Span], *, is_causal: bool, is_whole: bool = False) -> Spans:
    first_row = [0]
    for span in own:
        first_row.append(first_row[-1] + span.num_rows)
    rows = [row for span in own for row in _rows(span)]

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return Spans(
        row_T=None if is_whole else torch.tensor(rows),
        first_row_P=numbers(first_row),
        first_slot_P=numbers([*(span.first_slot for span in own), own[-1].first_slot]),
        num_keys_P=numbers([span.num_keys for span in own]),
        most_rows=max(span.num_rows for span in own),
        most_keys=max(span.num_keys for span in own),
        is_causal=is_causal,
    )


def attend(
    plan: SpanPlan,
    query_NHd: Tensor,
    key_SKd: Tensor,
    value_SKd: Tensor,
    scale: float,
    *,
    softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Attention output [N, H, d] over keys and values of all slots.

    Soft-caps, and values of another width than keys, take the plain kernel.
    """
    kernel = kernel_of(query_NHd, key_SKd, value_SKd, softcap)
    outputs = []
    weights = []
    for spans in plan.calls:
        query_THd = query_NHd if spans.row_T is None else query_NHd[spans.row_T]
        output_THd, lse_TH = kernel(spans, query_THd, key_SKd, value_SKd, scale)
        outputs.append(output_THd)
        weights.append(lse_TH)
    if plan.row_T is None:
        return _beside_sinks(outputs[0], weights[0], sink_H)
    output_THd = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    lse_TH = weights[0] if len(weights) == 1 else torch.cat(weights)
    output_NHd, lse_NH = _merged(output_THd, lse_TH, plan.row_T, len(query_NHd))
    return _beside_sinks(output_NHd, lse_NH, sink_H)


def _beside_sinks(output_NHd: Tensor, lse_NH: Tensor, sink_H: Tensor | None) -> Tensor:
    """The output where a sink takes its share of the probability."""
    if sink_H is None:
        return output_NHd
    share_NH = torch.sigmoid(lse_NH.float() - sink_H.float())
    return output_NHd * share_NH[..., None].to(output_NHd.dtype)


def _merged(
    output_THd: Tensor, lse_TH: Tensor, row_T: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """The spans of each row as one: softmax over all its keys, and its log-sum-exps [N, H].

    Spans of padding are merged into a row behind the others, which is left out.
    """
    shape = (num_rows + 1, lse_TH.shape[1])
    most_NH = torch.full(shape, -torch.inf, device=lse_TH.device)
    index_TH = row_T[:, None].expand_as(lse_TH)
    most_NH = most_NH.scatter_reduce_(0, index_TH, lse_TH, "amax")
    weight_TH = (lse_TH - most_NH[row_T]).exp()
    total_NH = torch.zeros(shape, device=lse_TH.device).index_add_(0, row_T, weight_TH)
    weight_TH = weight_TH / total_NH[row_T]
    merged_NHd = torch.zeros((*shape, output_THd.shape[2]), device=lse_TH.device)
    weighted_THd = output_THd.float() * weight_TH[..., None]
    merged_NHd.index_add_(0, row_T, weighted_THd)
    lse_NH = most_NH + total_NH.log()
    return merged_NHd[:num_rows].to(output_THd.dtype), lse_NH[:num_rows]


def kernel_of(query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Kernel:
    """Flash attention where there is one for the device and what is computed, else plain torch."""
    is_usual = softcap is None and key.shape[-1] == value.shape[-1]
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if query.device.type == "cuda" and is_half and is_usual and _is_ampere(query.device.index):
        return flash
    return plain if softcap is None else partial(plain, softcap=softcap)


@cache
def _is_ampere(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)


def flash(
    spans: Spans, query_THd: Tensor, key_SKd: Tensor, value_SKd: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """A `Kernel`: FlashAttention for sequences of any length.

    Spans may overlap, repeat and go back: each has its first slot and its length. No GPU has seen
    this yet; `make gpu-check` has to compare it with `plain`.
    """
    output_THd, lse_HT = varlen_attn(
        query_THd,
        key_SKd,
        value_SKd,
        spans.first_row_P,
        spans.first_slot_P,
        spans.most_rows,
        spans.most_keys,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if spans.is_causal else (-1, -1),
        enable_gqa=query_THd.shape[1] != key_SKd.shape[1],
        seqused_k=spans.num_keys_P,
    )
    return output_THd, lse_HT.T


def plain(
    spans: Spans,
    query_THd: Tensor,
    key_SKd: Tensor,
    value_SKd: Tensor,
    scale: float,
    *,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """A `Kernel` for any device and dtype: right, not fast. Every span is as wide as the widest."""
    device = query_THd.device
    row_Q = torch.arange(spans.most_rows, device=device)
    key_L = torch.arange(spans.most_keys, device=device)
    first_P1 = spans.first_row_P[:-1, None]
    num_rows_P1 = spans.first_row_P[1:, None] - first_P1
    row_PQ = (first_P1 + row_Q).clamp(max=len(query_THd) - 1)
    slot_PL = (spans.first_slot_P[:-1, None] + key_L).clamp(max=len(key_SKd) - 1)
    num_heads, num_key_heads = query_THd.shape[1], key_SKd.shape[1]
    query_PQKGd = query_THd[row_PQ].unflatten(2, (num_key_heads, num_heads // num_key_heads))
    score_PKGQL = torch.einsum("pqkgd,plkd->pkgql", query_PQKGd, key_SKd[slot_PL]).float() * scale
    if softcap is not None:
        score_PKGQL = torch.tanh(score_PKGQL / softcap) * softcap
    num_seen_PQ = spans.num_keys_P[:, None].expand(-1, spans.most_rows)
    if spans.is_causal:
        num_seen_PQ = num_seen_PQ - (num_rows_P1 - 1 - row_Q)
    is_hidden_PQL = key_L >= num_seen_PQ[..., None]
    score_PKGQL = score_PKGQL.masked_fill(is_hidden_PQL[:, None, None], -torch.inf)
    lse_PKGQ = score_PKGQL.logsumexp(-1)
    weight_PKGQL = (score_PKGQL - lse_PKGQ[..., None]).exp().to(value_SKd.dtype)
    is_beyond_PL = key_L >= spans.num_keys_P[:, None]  # another request's, and it may be NaN
    value_PLKd = value_SKd[slot_PL].masked_fill(is_beyond_PL[..., None, None], 0)
    output_PQKGd = torch.einsum("pkgql,plkd->pqkgd", weight_PKGQL, value_PLKd)
    # Places behind a span's rows are written nowhere: each of the T has one place.
    span_T = torch.searchsorted(
        spans.first_row_P[1:], torch.arange(len(query_THd), device=device), right=True
    )
    place_T = torch.arange(len(query_THd), device=device) - spans.first_row_P[span_T]
    output_THd = output_PQKGd[span_T, place_T].flatten(1, 2)
    return output_THd, lse_PKGQ.permute(0, 3, 1, 2)[span_T, place_T].flatten(1)
