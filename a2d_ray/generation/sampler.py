"""The reference sampler: plain, slow, obviously right. The engine is tested against it.

No cache: every denoise step runs the whole sequence through the model.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from a2d_ray.generation.canvas import Segments, make_canvas, stop_token_ids
from a2d_ray.generation.denoise import commit_step, window_counts
from a2d_ray.generation.params import SamplingParams
from a2d_ray.models.contract import Contract

Forward = Callable[[Tensor, Tensor], Tensor]
"""(ids [T], mask bool [T, T]) -> logits [T, V]."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The result of one request.

    Attributes:
        token_ids: the answer, without its end-of-turn token.
        canvas: every new token including what follows the end.
        finish_reason: ``stop`` or ``length``.
        num_forwards: model forwards.
        history: the new tokens after every forward (mask id where masked).
    """

    token_ids: list[int]
    canvas: list[int]
    finish_reason: str
    num_forwards: int
    history: list[list[int]]


@torch.inference_mode()
def sample(
    forward: Forward,
    prompt: Segments,
    params: SamplingParams,
    contract: Contract,
    *,
    eos_ids: Collection[int] = (),
    keep_mask_logit: bool = False,
) -> Sample:
    """Generates one answer with MDLM or BD3LM, as the model's contract says.

    Args:
        forward: the model.
        prompt: segments of token ids.
        params: options of the request (`stop` texts are not its business: it knows ids only).
        contract: of the model.
        eos_ids: end-of-turn tokens.
        keep_mask_logit: leave the mask token in the vocabulary, as the public recipe does.

    Source: the public A2D samplers (dLLM, arXiv 2602.22661).
    """
    canvas = make_canvas(prompt, params, contract)
    start, stop_ids = len(canvas.prompt_ids), stop_token_ids(params, eos_ids)
    x_T = torch.full((len(canvas),), contract.mask_token_id)
    x_T[:start] = torch.tensor(canvas.prompt_ids, dtype=torch.int64)
    block_T = torch.tensor(canvas.blocks)
    mask_TT = block_T[None, :] <= block_T[:, None]
    denoiser = _Denoiser(forward, params, contract, keep_mask_logit)
    history: list[list[int]] = []
    answer: list[int] = []
    for window in canvas.windows:
        history += denoiser.fill(x_T, mask_TT, window, start)
        answer = x_T[start : window[1]].tolist()
        if any(token in stop_ids for token in answer):
            break
    answer = answer[: params.max_new_tokens]
    ends = [i for i, token in enumerate(answer) if token in stop_ids]
    return Sample(
        token_ids=answer[: ends[0]] if ends else answer,
        canvas=x_T[start:].tolist(),
        finish_reason="stop" if ends else "length",
        num_forwards=len(history),
        history=history,
    )


@dataclass(frozen=True)
class _Denoiser:
    forward: Forward
    params: SamplingParams
    contract: Contract
    keep_mask_logit: bool

    def fill(
        self, x_T: Tensor, mask_TT: Tensor, window: tuple[int, int], start: int
    ) -> list[list[int]]:
        """Denoises a window of `x_T` in place; returns the new tokens after every step."""
        params = self.params
        mask_id = None if self.keep_mask_logit else self.contract.mask_token_id
        block_size = params.block_size or self.contract.block_size
        counts = window_counts(window[1] - window[0], params, block_size)
        is_masked_T = torch.zeros_like(x_T, dtype=torch.bool)
        is_masked_T[window[0] : window[1]] = True
        history: list[list[int]] = []
        while is_masked_T.any():
            position_N = is_masked_T.nonzero()[:, 0]
            logits_NV = self.forward(x_T, mask_TT)[position_N].float()
            ids_N, _, is_committed_N = commit_step(
                logits_NV, position_N, params, step=len(history), counts=counts, mask_id=mask_id
            )
            x_T[position_N[is_committed_N]] = ids_N[is_committed_N]
            is_masked_T[position_N[is_committed_N]] = False
            history.append(x_T[start:].tolist())
        return history
