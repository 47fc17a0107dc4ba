"""NELBO of (context, continuation) pairs with fixed draws, for MDLM and BD3LM.

A pair is a document whose continuation is the target, laid out as in training
(`diffusion.layout`), so the block grid is the one that the model was trained on. Every draw masks
an exact count of each block in two complementary views (`diffusion.noise`). The draws depend on
the tokens alone: not on the order of the requests, on their neighbours, or on the process.

Shapes: E draws of one forward, D documents (pairs), R rows, T tokens of a row, N masked tokens.
Source: MDLM (arXiv 2406.07524), BD3LM (2503.09573), LLaDA (2502.09992, eq. 6) for exact counts.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.likelihood import DRAW_SEED
from a2d_ray.diffusion.losses import masked_cross_entropy
from a2d_ray.diffusion.noise import Noise, NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import noised_ids
from a2d_ray.evaluation.backends.requests import Score, ScoreRequest
from a2d_ray.evaluation.backends.score_batches import draws_per_forward, is_exact, needed_draws
from a2d_ray.models.contract import Contract
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.parts import head_of


@dataclass(frozen=True)
class _Pass:
    """One forward: which tokens are masked, and which draw each token belongs to."""

    layout: Layout
    noise: Noise
    draw_RT: Tensor


class Likelihood:
    """Scores continuations with one model.

    Args:
        model: A2D model with head.
        contract: how it is to be used.
        eos_id: id that fills the last block of a complete answer (BD3LM).
        max_length: positions of the model.

    Raises:
        ValueError: a contract without an objective, or with shifted logits.
    """

    def __init__(self, model: Any, contract: Contract, *, eos_id: int, max_length: int) -> None:
        if contract.objective is None:
            raise ValueError(
                "this model is converted but not trained, so its objective is unknown: train it, "
                "or load it with objective='bd3lm' or 'mdlm' (on a command line "
                "model.objective=bd3lm)"
            )
        if contract.right_shift_logits:
            raise ValueError("right_shift_logits=true: likelihoods of such models are not computed")
        self._model = model
        self._contract = contract
        self._max_length = max_length
        self._mask_id = contract.mask_token_id
        self._spec = LayoutSpec(
            objective=contract.objective,
            block_size=contract.block_size,
            block_grid=contract.block_grid,
            views=2,
            eos_id=eos_id,
            pad_id=eos_id,
            causal_clean=contract.clean_attention == "causal",
        )

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """The NELBO of each continuation; a batch of `plan_batches` at a time is the caller's job.

        Raises:
            ValueError: an empty continuation, or a pair longer than the model's positions.
        """
        for request in requests:
            self._check(request)
        row = _packed_row(requests)
        draws = [needed_draws(request, self._contract) for request in requests]
        num_draws = max(draws)
        chunk = draws_per_forward(requests, self._contract)
        nats_ED = torch.cat(
            [
                self._nats(row, range(start, min(start + chunk, num_draws)))
                for start in range(0, num_draws, chunk)
            ]
        )
        return [
            _summary(nats_ED[: draws[d], d], request, self._contract)
            for d, request in enumerate(requests)
        ]

    def _check(self, request: ScoreRequest) -> None:
        if not request.continuation:
            raise ValueError("the continuation of a likelihood request holds no token")
        if request.num_tokens > self._max_length:
            raise ValueError(
                f"context and continuation have {request.num_tokens} tokens, the model has "
                f"{self._max_length} positions: cut the context"
            )

    def _nats(self, row: PackedRow, draws: range) -> Tensor:
        """Weighted cross-entropy of both views / 2, per draw and document; float64 [E, D]."""
        one = self._mdlm_pass if self._spec.objective == "mdlm" else self._bd3lm_pass
        plan = one(row, draws)
        layout = plan.layout.to(self._model.device)
        noise = plan.noise.to(self._model.device)
        ids_RT = noised_ids(layout, noise, self._mask_id)
        hidden_RTH = layout_hidden(self._model, ids_RT, layout, self._spec.causal_clean)
        picked = noise.is_masked_RT
        _, loss_N = masked_cross_entropy(
            hidden_RTH[picked],
            head_of(self._model),
            layout.ids_RT[picked],
            noise.weight_RT[picked],
            self._mask_id,
        )
        weighted_N = (loss_N.double() * noise.weight_RT[picked].double()).cpu()
        picked = picked.cpu()
        num_docs = row.doc_id_D.numel()
        place_N = plan.draw_RT[picked] * num_docs + plan.layout.doc_RT[picked]
        total = torch.zeros(len(draws) * num_docs, dtype=torch.float64)
        return total.index_add(0, place_N, weighted_N).view(len(draws), num_docs) / 2

    def _mdlm_pass(self, row: PackedRow, draws: range) -> _Pass:
        """A row per draw: nothing can be shared, since every token sees every token."""
        layout = build_layout([row] * len(draws), self._spec)
        epoch_R = torch.tensor(list(draws))
        noise = draw_noise(layout, NoiseSpec(), seed=DRAW_SEED, epoch_R=epoch_R)
        draw_RT = torch.arange(len(draws))[:, None].expand_as(layout.ids_RT)
        return _Pass(layout, noise, draw_RT)

    def _bd3lm_pass(self, row: PackedRow, draws: range) -> _Pass:
        """One clean copy for the views of all these draws: they share its forward."""
        pair = build_layout([row], self._spec)
        layout = build_layout([row], replace(self._spec, views=2 * len(draws)))
        is_masked_RT = torch.zeros_like(layout.is_target_RT)
        weight_RT = torch.zeros(layout.ids_RT.shape)
        for index, draw in enumerate(draws):
            drawn = draw_noise(pair, NoiseSpec(), seed=DRAW_SEED, epoch_R=torch.full((1,), draw))
            for view in (1, 2):
                mine = layout.stream_RT == 2 * index + view
                theirs = pair.stream_RT == view
                is_masked_RT[mine] = drawn.is_masked_RT[theirs]
                weight_RT[mine] = drawn.weight_RT[theirs]
        noise = Noise(is_masked_RT=is_masked_RT, weight_RT=weight_RT)
        return _Pass(layout, noise, (layout.stream_RT - 1).clamp(min=0) // 2)


def _packed_row(requests: Sequence[ScoreRequest]) -> PackedRow:
    """The pairs as documents of one row, each with the id that its tokens hash to."""
    parts = [[*request.context, request.continuation] for request in requests]
    lengths = [[len(segment) for segment in segments] for segments in parts]
    return PackedRow(
        ids_C=torch.tensor([i for segments in parts for s in segments for i in s]),
        doc_C=torch.tensor([d for d, ns in enumerate(lengths) for n in ns for _ in range(n)]),
        segment_C=torch.tensor([s for ns in lengths for s, n in enumerate(ns) for _ in range(n)]),
        is_target_C=torch.tensor(
            [s == len(ns) - 1 for ns in lengths for s, n in enumerate(ns) for _ in range(n)]
        ),
        doc_id_D=torch.tensor([_document_id(request) for request in requests]),
        is_complete_D=torch.tensor([request.is_complete for request in requests]),
    )


def _document_id(request: ScoreRequest) -> int:
    text = repr((request.context, request.continuation)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1


def _summary(nats_E: Tensor, request: ScoreRequest, contract: Contract) -> Score:
    stderr = None
    if is_exact(request, contract):
        stderr = 0.0
    elif nats_E.numel() > 1:
        stderr = float(nats_E.std()) / math.sqrt(nats_E.numel())
    return Score(nats=float(nats_E.mean()), stderr=stderr, num_tokens=len(request.continuation))
