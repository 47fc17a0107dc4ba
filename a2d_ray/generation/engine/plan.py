"""What the host writes about a round before the device begins: one tree of tensors.

N tokens of all works, R rows whose logits are read, G of them with guidance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from a2d_ray.generation.decoding.asking import by_rule, make_batch
from a2d_ray.generation.decoding.batch import Batch
from a2d_ray.generation.decoding.denoise import Inquiry
from a2d_ray.generation.engine.attention import RowTile, Slice, make_tiles
from a2d_ray.generation.engine.spans import SpanPlan, plan_spans
from a2d_ray.generation.engine.work import Question, Work

_T = TypeVar("_T")
MERGED_ROWS = 32  # that see a prefix, in one tile with those that do not: half the products


@dataclass(frozen=True, kw_only=True)
class RoundTokens:
    """What the layers run on.

    Attributes:
        id_N, position_N: int64.
        is_noised_N: bool; None: nobody asks.
        noised_row_M: where that is, int64.
        slices: of each work, for a CPU.
        spans: of all works, for other devices; None: on a CPU.
        is_padded: whether it has the shape of a bucket (`padding`).
    """

    id_N: Tensor
    position_N: Tensor
    is_noised_N: Tensor | None
    noised_row_M: Tensor | None
    slices: tuple[Slice, ...]
    spans: SpanPlan | None
    is_padded: bool = False


@dataclass(frozen=True, kw_only=True)
class HeadRows:
    """Rows that the head is run on together.

    Attributes:
        row_R: hidden states, int64: those of the N tokens, and behind them the ones of earlier
            rounds. The last G are those without the given text.
        guided_G: which rows they guide; None: none.
        factor_G1: 1 + scale, float32.
        batches: what is asked of the others, in their order.
        is_padded: whether it has the shape of a bucket (`padding`).
    """

    row_R: Tensor
    guided_G: Tensor | None
    factor_G1: Tensor | None
    batches: tuple[Batch, ...]
    is_padded: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What stays on the host: who asks in which batch.

    Attributes:
        asked: of each batch of each head.
        order: places of the questions, in the order in which they are asked.
        earlier: hidden states of earlier rounds that rows name.
    """

    asked: tuple[tuple[tuple[Inquiry, ...], ...], ...]
    order: tuple[int, ...]
    earlier: tuple[Tensor, ...]


def plan_tokens(works: Sequence[Work], *, is_cpu: bool, is_gated: bool) -> RoundTokens:
    """Tokens of a round.

    Args:
        works: what the sequences bring.
        is_cpu: whether it runs on a CPU.
        is_gated: whether the model has gated adapters.
    """
    is_noised_N = None
    noised_row_M = None
    if is_gated:
        sizes = [size for w in works for size in (w.num_tokens - w.num_noised, w.num_noised)]
        is_noised_P = torch.tensor([False, True] * len(works))
        is_noised_N = is_noised_P.repeat_interleave(torch.tensor(sizes))
        noised_row_M = is_noised_N.nonzero()[:, 0]
    return RoundTokens(
        id_N=torch.tensor([i for w in works for i in w.ids], dtype=torch.int64),
        position_N=torch.tensor([p for w in works for p in w.positions], dtype=torch.int64),
        is_noised_N=is_noised_N,
        noised_row_M=noised_row_M,
        slices=tuple(map(_slice, works)) if is_cpu else (),
        spans=None if is_cpu else plan_spans(works),
    )


def page_rows(works: Sequence[Work]) -> list[tuple[Any, int]]:
    """Pages that a round fills, and where their last tokens are among the N."""
    found = []
    first = 0
    for work in works:
        stop = first
        for page in work.chunk.pages:
            stop += page.num_tokens
            found.append((page, stop - 1))
        first += work.num_tokens
    return found


def _slice(work: Work) -> Slice:
    return Slice(
        num_tokens=work.num_tokens,
        new_runs=work.new_runs,
        all_runs=work.all_runs,
        tiles=tiles_of(work),
    )


def tiles_of(work: Work) -> tuple[RowTile, ...]:
    """Rows of a work that are computed together, with the keys that they see."""
    tiles = make_tiles(work.num_visible)
    if work.sight is None:
        return tiles
    num_seen = len(work.num_visible)
    num_keys = work.sight.num_common + work.sight.hidden_mS.shape[1]
    if num_seen > MERGED_ROWS:  # those rows are spared the keys behind them
        last = RowTile(
            rows=(num_seen, work.num_tokens),
            num_keys=num_keys,
            num_common=work.sight.num_common,
            hidden_RS=work.sight.hidden_mS,
        )
        return (*tiles, last)
    num_common = work.num_visible[0]
    seen_n1 = torch.tensor(work.num_visible)[:, None]
    prefix_hidden_nS = torch.arange(num_common, num_keys) >= seen_n1
    hidden_mS = pad(work.sight.hidden_mS, (work.sight.num_common - num_common, 0))
    return (
        RowTile(
            rows=(0, work.num_tokens),
            num_keys=num_keys,
            num_common=num_common,
            hidden_RS=torch.cat([prefix_hidden_nS, hidden_mS]),
        ),
    )


class HiddenRows:
    """Where each work's hidden states are.

    Args:
        works: of the round.
        is_shifted: `right_shift_logits`: the logits at i - 1 predict token i.
    """

    def __init__(self, works: Sequence[Work], *, is_shifted: bool) -> None:
        self._is_shifted = is_shifted
        self._first: dict[int, int] = {}
        self.num_tokens = 0
        for work in works:
            self._first[id(work)] = self.num_tokens
            self.num_tokens += work.num_tokens
        self._row_of_page = {id(page): row for page, row in page_rows(works)}
        self.earlier: list[Tensor] = []

    def spare(self, works: Sequence[Work]) -> list[int]:
        """Rows whose logits may be asked for later."""
        return [self._first[id(work)] + row for work in works for row in work.spare_rows]

    def read_by(self, question: Question) -> list[list[int]]:
        """Rows that answer a question, of each of its works."""
        if question.rows is not None:
            first = self._first[id(question.works[0])]
            return [[first + row for row in question.rows]]
        positions = question.asked.active.positions
        return [[self._row(work, position) for position in positions] for work in question.works]

    def _row(self, work: Work, position: int) -> int:
        row = position - work.start - self._is_shifted
        first = self._first[id(work)]
        if row >= 0:
            return first + row
        before = None if work.storage is None else work.storage.last_page
        if work.start == 0 or before is None:  # nothing precedes position 0: its own logits
            return first
        if id(before) in self._row_of_page:  # another request stores it now
            return self._row_of_page[id(before)]
        if before.last_hidden_H is None:
            return first
        self.earlier.append(before.last_hidden_H)
        return self.num_tokens + len(self.earlier) - 1


def plan_heads(
    questions: Sequence[Question], rows: HiddenRows, *, head_rows: int, batch_rows: int
) -> tuple[tuple[HeadRows, ...], Reading]:
    """What is decided in a round.

    Args:
        questions: at least one.
        rows: where the hidden states are.
        head_rows: rows that the head is run on at a time.
        batch_rows: rows that are decided at a time.
    """
    order = by_rule([question.asked for question in questions])
    read = [(questions[i].asked, rows.read_by(questions[i])) for i in order]
    heads = []
    asked = []
    for group in together(read, lambda one: sum(map(len, one[1])), head_rows):
        batched = [*together([one for one, _ in group], _num_rows, batch_rows)]
        asked.append(tuple(map(tuple, batched)))
        heads.append(_head(group, tuple(map(make_batch, batched))))
    reading = Reading(asked=tuple(asked), order=tuple(order), earlier=tuple(rows.earlier))
    return tuple(heads), reading


def _head(group: list[tuple[Inquiry, list[list[int]]]], batches: tuple[Batch, ...]) -> HeadRows:
    row = [i for _, own in group for i in own[0]]
    unconditional: list[int] = []
    guided: list[int] = []
    factor: list[float] = []
    first = 0
    for one, own in group:
        if len(own) > 1:
            unconditional += own[1]
            guided += range(first, first + len(own[0]))
            factor += [1 + one.decoder.params.cfg_scale] * len(own[0])
        first += len(own[0])
    return HeadRows(
        row_R=torch.tensor(row + unconditional),
        guided_G=torch.tensor(guided) if guided else None,
        factor_G1=torch.tensor(factor, dtype=torch.float32)[:, None] if guided else None,
        batches=batches,
    )


def _num_rows(asked: Inquiry) -> int:
    return len(asked.active.positions)


def together(items: Sequence[_T], size: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """Neighbours of about `most` rows together."""
    group: list[_T] = []
    total = 0
    for item in items:
        if group and total + size(item) > most:
            yield group
            group = []
            total = 0
        group.append(item)
        total += size(item)
    yield group
