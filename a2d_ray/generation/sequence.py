"""A running request: its canvas, its progress, and the tokens that it brings to a round."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from a2d_ray.generation.canvas import Canvas, request_block_size, stop_token_ids
from a2d_ray.generation.denoise import commit_step, window_counts
from a2d_ray.generation.pages import Page, PageTable, root_key
from a2d_ray.generation.request import Request, StepOutput
from a2d_ray.generation.storage import Chunk, SequenceStorage, block_edges
from a2d_ray.models.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Work:
    """New tokens of one sequence in a round.

    Attributes:
        sequence: the sequence.
        start, stop: canvas positions of the new tokens.
        chunk: finished blocks among them, which are stored.
        asked: canvas positions whose tokens are to be predicted, int64; empty while a prompt is
            being stored.
    """

    sequence: "Sequence"
    start: int
    stop: int
    chunk: Chunk
    asked: Tensor

    @property
    def num_tokens(self) -> int:
        """New tokens."""
        return self.stop - self.start


class Sequence:
    """A request with what has become of it.

    Args:
        request: the request.
        canvas: its canvas.
        contract: of the model.
        eos_ids: end-of-turn tokens.
        table: gives slots of the KV store; None: nothing is stored (MDLM).
    """

    def __init__(
        self,
        request: Request,
        canvas: Canvas,
        contract: Contract,
        eos_ids: Collection[int],
        table: PageTable | None,
    ) -> None:
        self.request, self._canvas = request, canvas
        self._stop_ids = stop_token_ids(request.params, eos_ids)
        self._mask_id = contract.mask_token_id
        self._block_size = request_block_size(request.params, contract)
        num_prompt = len(canvas.prompt_ids)
        self.x_T = torch.full((len(canvas),), self._mask_id)
        self.x_T[:num_prompt] = torch.tensor(canvas.prompt_ids, dtype=torch.int64)
        self._is_masked_T = torch.arange(len(canvas)) >= num_prompt
        self._confidence_T = torch.zeros(len(canvas))
        self._num_visible = _visible_counts(canvas, contract)
        self.storage: SequenceStorage | None = None
        if table is not None:
            root = root_key(self._block_size, contract.block_grid, request.salt)
            self.storage = SequenceStorage(table, root)
        self._num_emitted = self._num_forwards = self._num_steps = 0
        self._open_window(0)

    def admit(self) -> bool:
        """Reserves room in the KV store; False if there is none now."""
        if self.storage is None:
            return True
        edges = block_edges(self._canvas.blocks, self._canvas.block_start(0))
        ids = self._canvas.prompt_ids
        return self.storage.admit([ids[a:b] for a, b in edges], len(self._canvas))

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt is not stored yet."""
        return self.storage is not None and not self._num_steps and not self.storage.is_stored

    def plan(self, budget: int, in_flight: Collection[Page], *, is_fused: bool) -> Work:
        """The tokens of this round: finished blocks, and the active one if those are all stored.

        Args:
            budget: tokens of finished blocks that are welcome; one block always is.
            in_flight: pages that other requests store in this round.
            is_fused: whether the active block may come with finished ones.
        """
        if self.storage is None:
            chunk = Chunk(start=0, stop=0, pages=())
        else:
            chunk = self.storage.next_chunk(budget, in_flight)
        self._num_forwards += 1
        is_ready = self.storage is None or self.storage.is_stored
        if not is_ready or (chunk.pages and not is_fused):
            none = torch.empty(0, dtype=torch.int64)
            return Work(sequence=self, start=chunk.start, stop=chunk.stop, chunk=chunk, asked=none)
        stop = len(self._canvas) if self.storage is None else self._window[1]
        asked = self.masked_positions()
        return Work(sequence=self, start=chunk.start, stop=stop, chunk=chunk, asked=asked)

    def num_visible(self, work: Work) -> list[int]:
        """Keys that each of the new tokens sees."""
        finished = self._num_visible[work.start : work.chunk.stop]
        return finished + [work.stop] * (work.stop - work.chunk.stop)

    def masked_positions(self) -> Tensor:
        """Canvas positions that are still masked in the active window, int64."""
        start, stop = self._window
        return start + self._is_masked_T[start:stop].nonzero()[:, 0]

    def output(self) -> StepOutput:
        """What there is to say after a round that only stored finished blocks."""
        return self._output((), None)

    def commit(self, position_N: Tensor, logits_NV: Tensor) -> StepOutput:
        """Takes the logits of the asked positions and commits what the rule selects."""
        ids_N, confidence_N, is_committed_N = commit_step(
            logits_NV,
            position_N,
            self.request.params,
            step=self._step,
            counts=self._counts,
            mask_id=self._mask_id,
        )
        self.x_T[position_N[is_committed_N]] = ids_N[is_committed_N]
        self._is_masked_T[position_N[is_committed_N]] = False
        self._confidence_T[position_N] = confidence_N
        self._step += 1
        self._num_steps += 1
        output = self._output(*self._emit())
        is_done = not self._is_masked_T[self._window[0] : self._window[1]].any()
        if output.finish_reason is None and is_done:
            if self.storage is not None:
                block = self.x_T[self.storage.num_stored : self._window[1]]
                self.storage.append_block(tuple(block.tolist()))
            self._open_window(self._window_index + 1)
        return output

    def release(self) -> None:
        """Gives the slots back."""
        if self.storage is not None:
            self.storage.release()

    def _open_window(self, index: int) -> None:
        self._window_index, self._step = index, 0
        self._window = start, stop = self._canvas.windows[index]
        self._counts = window_counts(stop - start, self.request.params, self._block_size)

    def _emit(self) -> tuple[tuple[int, ...], str | None]:
        """Tokens that became final, and why the answer ends, if it does."""
        start = len(self._canvas.prompt_ids)
        first = start + self._num_emitted
        masked = self._is_masked_T[first:].nonzero()
        final = self.x_T[first : first + int(masked[0]) if len(masked) else None].tolist()
        final = final[: self.request.params.max_new_tokens - self._num_emitted]
        ends = [i for i, token in enumerate(final) if token in self._stop_ids]
        if ends:
            return tuple(final[: ends[0]]), "stop"
        self._num_emitted += len(final)
        is_full = self._num_emitted == self.request.params.max_new_tokens
        return tuple(final), "length" if is_full else None

    def _output(self, token_ids: tuple[int, ...], finish_reason: str | None) -> StepOutput:
        return StepOutput(
            request_id=self.request.request_id,
            token_ids=token_ids,
            finish_reason=finish_reason,
            num_forwards=self._num_forwards,
            num_denoise_steps=self._num_steps,
            canvas=self._visible(self.x_T),
            canvas_confidence=self._visible(self._confidence_T),
            num_cached_tokens=0 if self.storage is None else self.storage.num_cached_tokens,
        )

    def _visible(self, values_T: Tensor) -> tuple[Any, ...]:
        """Values of the active window, None where it is still masked."""
        values, is_masked = (
            x_T[slice(*self._window)].tolist() for x_T in (values_T, self._is_masked_T)
        )
        return tuple(None if m else value for value, m in zip(values, is_masked, strict=True))


def _visible_counts(canvas: Canvas, contract: Contract) -> list[int]:
    """Keys that each token of the canvas sees once its block is finished."""
    if contract.clean_attention == "causal" and contract.objective == "bd3lm":
        return list(range(1, len(canvas) + 1))
    edges = block_edges(canvas.blocks, len(canvas))
    return [stop for start, stop in edges for _ in range(start, stop)]
