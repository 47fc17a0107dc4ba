"""Exact log-likelihoods in the AR mode: one causal forward scores many continuations.

A row is a context and the continuations that share it, as branches: a token sees the context and
its own branch up to itself. The last token of a continuation predicts nothing, so it is not run.
Every token predicts the next one, whatever the block grid and `right_shift_logits` are.

Shapes: R rows, T tokens of a row, N scored tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from a2d_ray.diffusion.losses import token_scores
from a2d_ray.evaluation.backends.requests import Score, ScoreRequest
from a2d_ray.evaluation.backends.score_batches import shared_rows
from a2d_ray.models.parts import head_of

_CONTEXT = 0
_PAD = -1


class ARLikelihood:
    """Scores continuations with the AR mode of one model.

    Args:
        model: A2D model with head, of a contract with an `ar_mode`.
        mask_id: its mask token, which the AR mode never writes.
        max_length: positions of the model.
    """

    def __init__(self, model: Any, *, mask_id: int, max_length: int) -> None:
        self._model = model
        self._mask_id = mask_id
        self._max_length = max_length

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """The score of each continuation; a batch of `plan_batches` at a time is the caller's job.

        Raises:
            ValueError: an empty context or continuation, or a pair beyond the model's positions.
        """
        for request in requests:
            self._check(request)
        batch = _batch(requests)
        device = self._model.device
        hidden_RTH = self._model.base_model(
            input_ids=batch.ids_RT.to(device),
            attention_mask=_mask(batch).to(device),
            position_ids=batch.position_RT.to(device),
            use_cache=False,
        ).last_hidden_state
        nats_N, is_right_N = token_scores(
            hidden_RTH[batch.row_N.to(device), batch.column_N.to(device)],
            head_of(self._model),
            batch.label_N.to(device),
            self._mask_id,
        )
        nats = torch.zeros(len(requests), dtype=torch.float64)
        nats.index_add_(0, batch.request_N, nats_N.double().cpu())
        num_wrong = torch.zeros(len(requests), dtype=torch.int64)
        num_wrong.index_add_(0, batch.request_N, (~is_right_N).long().cpu())
        return [
            Score(
                nats=float(nats[index]),
                stderr=0.0,
                num_tokens=len(request.continuation),
                is_greedy=not num_wrong[index],
            )
            for index, request in enumerate(requests)
        ]

    def _check(self, request: ScoreRequest) -> None:
        if not request.continuation:
            raise ValueError("the continuation of a likelihood request holds no token")
        if not request.context_ids:
            raise ValueError(
                "the context of an exact likelihood holds no token, so nothing predicts the first "
                "one: begin with the BOS token"
            )
        if request.num_tokens > self._max_length + 1:
            raise ValueError(
                f"context and continuation have {request.num_tokens} tokens, the model predicts "
                f"{self._max_length} positions: cut the context"
            )


@dataclass(frozen=True)
class _Batch:
    """Rows of a forward, and where it scores what.

    Attributes:
        ids_RT, position_RT: of the tokens.
        branch_RT: `_CONTEXT`, the number of a continuation from 1, or `_PAD`.
        request_N, label_N: index of the request of each scored token, and its id.
        row_N, column_N: of the token that predicts it.
    """

    ids_RT: Tensor
    position_RT: Tensor
    branch_RT: Tensor
    request_N: Tensor
    label_N: Tensor
    row_N: Tensor
    column_N: Tensor


@dataclass
class _Row:
    """A row that is being filled."""

    ids: list[int]
    position: list[int]
    branch: list[int]
    scored: list[tuple[int, int, int]] = field(default_factory=list)  # request, label, column

    def add(self, index: int, continuation: Sequence[int], num_context: int) -> None:
        """Appends a branch."""
        start = len(self.ids)
        num_run = len(continuation) - 1
        columns = [num_context - 1, *range(start, start + num_run)]
        pairs = zip(continuation, columns, strict=True)
        self.scored += [(index, label, column) for label, column in pairs]
        self.ids += continuation[:-1]
        self.position += range(num_context, num_context + num_run)
        self.branch += [self.branch[-1] + 1] * num_run


def _batch(requests: Sequence[ScoreRequest]) -> _Batch:
    rows = []
    for shared in shared_rows(requests):
        context = requests[shared.members[0]].context_ids
        num_context = len(context)
        row = _Row(list(context), list(range(num_context)), [_CONTEXT] * num_context)
        for index in shared.members:
            row.add(index, requests[index].continuation, num_context)
        rows.append(row)
    scored = [(index, label, r, c) for r, row in enumerate(rows) for index, label, c in row.scored]
    request_N, label_N, row_N, column_N = torch.tensor(scored).unbind(1)
    return _Batch(
        ids_RT=_padded([row.ids for row in rows], 0),
        position_RT=_padded([row.position for row in rows], 0),
        branch_RT=_padded([row.branch for row in rows], _PAD),
        request_N=request_N,
        label_N=label_N,
        row_N=row_N,
        column_N=column_N,
    )


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _mask(batch: _Batch) -> Tensor:
    """Who sees whom, bool [R, 1, T, T]; padding is seen by padding only."""
    branch_q = batch.branch_RT[:, None, :, None]
    branch_k = batch.branch_RT[:, None, None, :]
    position_q = batch.position_RT[:, None, :, None]
    position_k = batch.position_RT[:, None, None, :]
    return (position_k <= position_q) & ((branch_k == _CONTEXT) | (branch_k == branch_q))
