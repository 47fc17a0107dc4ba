"""The engine: requests -> rounds -> committed tokens.

One round is one forward for all running requests. A BD3LM request brings the clean tokens that
are not in its cache yet (the prompt at first, a finished block later) and its active block, under
the staircase mask: so the prompt is run once, and a block is stored in the same forward that
denoises the next one for the first time. An MDLM request brings its whole canvas.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from a2d_ray.generation.cache import KVCache
from a2d_ray.generation.canvas import (
    Canvas,
    Segments,
    check_prompt,
    make_canvas,
    request_block_size,
    stop_token_ids,
)
from a2d_ray.generation.denoise import commit_step, window_counts
from a2d_ray.generation.params import SamplingParams
from a2d_ray.models.attention import RaggedSlice, ragged_hidden, ragged_mode
from a2d_ray.models.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt with its options.

    Attributes:
        request_id: unique among unfinished requests.
        prompt: segments of token ids; empty is allowed.
        params: options (`stop` texts are not the engine's business: it knows ids only).
    """

    request_id: str
    prompt: Segments
    params: SamplingParams


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one round brought for one request.

    Attributes:
        request_id: the request.
        token_ids: newly final tokens: the answer grows by them. Never the end-of-turn token.
        finish_reason: None while running; ``stop`` or ``length``.
        num_forwards: forwards so far.
        num_denoise_steps: forwards so far in which tokens were committed.
        canvas: the active window: ids, None where still masked.
        canvas_confidence: of each of its ids when it was committed; None where still masked.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_forwards: int
    num_denoise_steps: int
    canvas: tuple[int | None, ...]
    canvas_confidence: tuple[float | None, ...]


class Engine:
    """Continuous batching of requests on one model. Synchronous: one thread drives it.

    Args:
        model: A2D model with head (`.model`, `.lm_head`).
        contract: how it is to be used.
        eos_ids: end-of-turn tokens.
        max_length: positions of the model.
        max_running: requests in one round; others wait, first come first served.

    Raises:
        ValueError: a contract that the engine cannot serve.
    """

    def __init__(
        self,
        model: Any,
        contract: Contract,
        *,
        eos_ids: Collection[int],
        max_length: int,
        max_running: int = 64,
    ) -> None:
        if contract.right_shift_logits:
            raise ValueError("right_shift_logits=true: the engine does not serve such models")
        self._model, self._contract = model, contract
        self._eos_ids, self._max_length = frozenset(eos_ids), max_length
        self._max_running = max_running
        self._waiting: deque[Request] = deque()
        self._running: dict[str, _Sequence] = {}

    def add_request(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ValueError: options or a prompt that this model cannot serve, or a used id.
        """
        vocab = self._model.config.vocab_size
        check_prompt(request.prompt, request.params, self._max_length, vocab)
        request_block_size(request.params, self._contract)
        waiting = (r.request_id for r in self._waiting)
        if request.request_id in self._running or request.request_id in waiting:
            raise ValueError(f"request_id {request.request_id!r} is in use")
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Forgets a request; unknown ids are fine."""
        self._running.pop(request_id, None)
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)

    def has_unfinished(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self._running or self._waiting)

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """One round: one forward for every running request; [] when there is none."""
        while self._waiting and len(self._running) < self._max_running:
            request = self._waiting.popleft()
            self._running[request.request_id] = self._start(request)
        if not self._running:
            return []
        sequences = list(self._running.values())
        logits = self._forward(sequences)
        outputs = [s.commit(part) for s, part in zip(sequences, logits, strict=True)]
        for output in outputs:
            if output.finish_reason is not None:
                del self._running[output.request_id]
        return outputs

    def _start(self, request: Request) -> "_Sequence":
        canvas = make_canvas(request.prompt, request.params, self._contract)
        cache = None
        if self._contract.objective == "bd3lm":
            config, weight = self._model.config, self._model.lm_head.weight
            cache = KVCache(
                num_layers=config.num_hidden_layers,
                num_key_heads=config.num_key_value_heads,
                head_dim=getattr(config, "head_dim", None)
                or config.hidden_size // config.num_attention_heads,
                capacity=len(canvas),
                dtype=weight.dtype,
                device=weight.device,
            )
        return _Sequence(request, canvas, cache, self._contract, self._eos_ids)

    def _forward(self, sequences: list["_Sequence"]) -> list[Tensor]:
        """Float32 logits of each request's masked positions."""
        device, start = self._model.lm_head.weight.device, 0
        ids, positions, picked, parts = [], [], [], []
        for sequence in sequences:
            ids_n, position_n, mask = sequence.new_tokens()
            parts.append(
                RaggedSlice(
                    num_tokens=ids_n.numel(),
                    mask=None if mask is None else mask.to(device),
                    cache=sequence.cache,
                    num_cached=sequence.num_cached,
                )
            )
            picked.append(start + sequence.masked_positions() - position_n[0])
            ids.append(ids_n)
            positions.append(position_n)
            start += ids_n.numel()
        ids_N, position_N = torch.cat(ids).to(device), torch.cat(positions).to(device)
        with ragged_mode(self._model):
            hidden_NH = ragged_hidden(self._model.model, ids_N, position_N, parts)
        logits_NV = self._model.lm_head(hidden_NH[torch.cat(picked).to(device)]).float().cpu()
        return list(logits_NV.split([p.numel() for p in picked]))


class _Sequence:
    """A running request: its canvas, cache and progress."""

    def __init__(
        self,
        request: Request,
        canvas: Canvas,
        cache: KVCache | None,
        contract: Contract,
        eos_ids: Collection[int],
    ) -> None:
        self._request, self._canvas, self.cache = request, canvas, cache
        self._stop_ids = stop_token_ids(request.params, eos_ids)
        self._mask_id = contract.mask_token_id
        self._block_size = request_block_size(request.params, contract)
        self._x_T = torch.full((len(canvas),), self._mask_id)
        self._x_T[: len(canvas.prompt_ids)] = torch.tensor(canvas.prompt_ids, dtype=torch.int64)
        self._block_T = torch.tensor(canvas.blocks)
        self._is_masked_T = torch.arange(len(canvas)) >= len(canvas.prompt_ids)
        self._confidence_T = torch.zeros(len(canvas))
        self._num_emitted = self.num_cached = self._num_forwards = 0
        self._open_window(0)

    def new_tokens(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids and positions of the tokens of this round, and who sees whom (None: all)."""
        stop = len(self._canvas) if self.cache is None else self._window[1]
        new = slice(self.num_cached, stop)
        position_n = torch.arange(self.num_cached, stop)
        mask = None
        if self.cache is not None and self._block_T[self.num_cached] != self._block_T[stop - 1]:
            mask = self._block_T[None, :stop] <= self._block_T[new, None]
        return self._x_T[new], position_n, mask

    def masked_positions(self) -> Tensor:
        """Canvas positions that are still masked in the active window, int64."""
        start, stop = self._window
        return start + self._is_masked_T[start:stop].nonzero()[:, 0]

    def commit(self, logits_NV: Tensor) -> StepOutput:
        """Takes the logits of `masked_positions` and commits what the rule selects."""
        position_N = self.masked_positions()
        ids_N, confidence_N, is_committed_N = commit_step(
            logits_NV,
            position_N,
            self._request.params,
            step=self._step,
            counts=self._counts,
            mask_id=self._mask_id,
        )
        self._x_T[position_N[is_committed_N]] = ids_N[is_committed_N]
        self._is_masked_T[position_N[is_committed_N]] = False
        self._confidence_T[position_N] = confidence_N
        self._step += 1
        self._num_forwards += 1
        if self.cache is not None:
            self.num_cached = self._canvas.block_start(self._window_index)
        token_ids, finish_reason = self._emit()
        output = StepOutput(
            request_id=self._request.request_id,
            token_ids=token_ids,
            finish_reason=finish_reason,
            num_forwards=self._num_forwards,
            num_denoise_steps=self._num_forwards,
            canvas=self._visible(self._x_T),
            canvas_confidence=self._visible(self._confidence_T),
        )
        if finish_reason is None and not self._is_masked_T[self._window[0] : self._window[1]].any():
            self._open_window(self._window_index + 1)
        return output

    def _open_window(self, index: int) -> None:
        self._window_index, self._step = index, 0
        self._window = start, stop = self._canvas.windows[index]
        self._counts = window_counts(stop - start, self._request.params, self._block_size)

    def _emit(self) -> tuple[tuple[int, ...], str | None]:
        """Tokens that became final, and why the answer ends, if it does."""
        start = len(self._canvas.prompt_ids)
        first = start + self._num_emitted
        masked = self._is_masked_T[first:].nonzero()
        final = self._x_T[first : first + int(masked[0]) if len(masked) else None].tolist()
        final = final[: self._request.params.max_new_tokens - self._num_emitted]
        ends = [i for i, token in enumerate(final) if token in self._stop_ids]
        if ends:
            return tuple(final[: ends[0]]), "stop"
        self._num_emitted += len(final)
        is_full = self._num_emitted == self._request.params.max_new_tokens
        return tuple(final), "length" if is_full else None

    def _visible(self, values_T: Tensor) -> tuple[Any, ...]:
        """Values of the active window, None where it is still masked."""
        start, stop = self._window
        pairs = zip(values_T[start:stop].tolist(), self._is_masked_T[start:stop], strict=True)
        return tuple(None if is_masked else value for value, is_masked in pairs)
