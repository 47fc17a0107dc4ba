"""CUDA graphs: what a round launches, captured once for a shape and launched again as one.

A graph reads and writes memory at fixed addresses. So every captured function has inputs of its
own, into which a round's are copied, and an output that stays where it is. Both functions of a
round are captured: the layers, and what is decided. What cannot be captured runs eagerly.

No GPU has run this yet: tests replay on a stand-in device by calling the function again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from a2d_ray.generation.engine.padding import (
    Buckets,
    pad_head,
    pad_tokens,
    token_shape,
    usual_asked_rows,
    usual_tokens,
    why_not_head,
)
from a2d_ray.generation.engine.plan import HeadRows, RoundTokens
from a2d_ray.generation.engine.transfer import Sent, laid_in, send_apart, signature

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# A capture takes the time of about as many rounds: what is rarer, and engines that answer one
# request, are spared it.
MET_BEFORE_CAPTURE = 16


class Capture(Protocol):
    """Records what a function launches."""

    def __call__(self, run: Callable[[], object]) -> Callable[[], None]:
        """What launches the same again, on the same memory.

        Args:
            run: has run before, in this thread; waits for nothing.

        Raises:
            Exception: it cannot be captured; nothing was launched.
        """


class CudaCapture:
    """`torch.cuda.CUDAGraph`; all graphs of an engine share their memory.

    They may, since none runs beside another, and what one leaves is read before the next begins.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)
        self._device = device

    def __call__(self, run: Callable[[], object]) -> Callable[[], None]:
        """See `Capture`. Other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    run()
            finally:
                torch.cuda.set_stream(stream)  # `graph` leaves its own behind where it fails
        return graph.replay


def capture_on(device: torch.device) -> Capture | None:
    """How graphs are captured on a device; None: it has none."""
    return CudaCapture(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class _Graph:
    inputs: Tensor
    output: Tensor
    replay: Callable[[], None]


class Graphs(Generic[_T]):
    """Runs one function, by a graph where its inputs have a shape that was captured.

    Args:
        name: of the function, for the log and the counts.
        run: the function; its inputs say everything about what it launches.
        capture: how; see there.
        counts: of runs, by what became of them.
        room: memory for an output like this one, which no later graph may take.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[_T], Tensor],
        capture: Capture,
        counts: Counter[str],
        room: Callable[[Tensor], Tensor] = torch.empty_like,
    ) -> None:
        self.name = name
        self._run = run
        self._capture: Capture | None = capture
        self._counts = counts
        self._room = room
        self._graphs: dict[Hashable, _Graph] = {}
        self._num_met: Counter[Hashable] = Counter()

    @property
    def is_on(self) -> bool:
        """Whether there is anything to gain: after a failure everything runs eagerly."""
        return self._capture is not None

    @property
    def num_captured(self) -> int:
        """Graphs that there are."""
        return len(self._graphs)

    def run(self, sent: Sent[_T]) -> Tensor:
        """The function's output; it holds until the next run.

        Args:
            sent: padded inputs.
        """
        key = signature(sent.value)
        graph = self._graphs.get(key)
        if graph is not None:
            assert sent.packed is not None
            graph.inputs.copy_(sent.packed)
            graph.replay()
            self._counts[f"{self.name} replayed"] += 1
            return graph.output
        self._num_met[key] += 1
        if self.is_on and self._num_met[key] >= MET_BEFORE_CAPTURE:
            return self.capture(sent)
        self._counts[f"{self.name} eager: not captured yet"] += 1
        return self._kept(self._run(sent.value))

    def capture(self, sent: Sent[_T]) -> Tensor:
        """Runs the function eagerly and captures it for inputs of this shape."""
        assert sent.packed is not None
        key = signature(sent.value)
        inputs = sent.packed.clone()
        value = laid_in(sent, inputs)
        output = self._kept(self._run(value))
        if self._capture is None or key in self._graphs:
            return output
        try:
            replay = self._capture(lambda: output.copy_(self._run(value)))
        except Exception as error:  # of whatever library: it costs speed, no answer
            self._give_up(error)
            return output
        self._graphs[key] = _Graph(inputs, output, replay)
        self._counts[f"{self.name} captured"] += 1
        return output

    def _kept(self, result: Tensor) -> Tensor:
        return self._room(result).copy_(result)

    def _give_up(self, error: Exception) -> None:
        """Captures nothing any more, and gives the memory back."""
        self._capture = None
        self._graphs.clear()
        self._counts[f"{self.name} failed"] += 1
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _log.warning("%s run without CUDA graphs: they cannot be captured (%s)", self.name, reason)


class RoundGraphs:
    """When a round of an engine is padded, and the graphs that run it.

    Args:
        capture: how; see there.
        buckets: shapes of rounds.
        run_layers: tokens on the device -> final hidden states [N, H].
        decide: what is asked on the device -> words of a `Decision`; it reads `hidden_NH`.
        hidden_NH: room for the hidden states of the largest padded round.

    Attributes:
        hidden_NH: where those of the round that was run last are.
        counts: of rounds' layers and of decisions, by what became of them.
    """

    def __init__(
        self,
        capture: Capture,
        buckets: Buckets,
        *,
        run_layers: Callable[[RoundTokens], Tensor],
        decide: Callable[[HeadRows], Tensor],
        hidden_NH: Tensor,
    ) -> None:
        self.hidden_NH = hidden_NH
        self.counts: Counter[str] = Counter()
        self._buckets = buckets
        self._layers = Graphs("layers", run_layers, capture, self.counts, self._hidden_of)
        self._decisions = Graphs("decisions", decide, capture, self.counts)
        self._run_layers = run_layers

    @property
    def num_captured(self) -> int:
        """Graphs that there are."""
        return self._layers.num_captured + self._decisions.num_captured

    def pad_tokens(self, tokens: RoundTokens) -> RoundTokens:
        """The tokens of a round in their bucket, or as they are where they run eagerly."""
        if not self._layers.is_on:
            return tokens
        shape = token_shape(tokens, self._buckets)
        if isinstance(shape, str):
            self.counts[f"layers eager: {shape}"] += 1
            return tokens
        return pad_tokens(tokens, shape, self._buckets)

    def pad_heads(self, heads: tuple[HeadRows, ...], *, is_far: bool) -> tuple[HeadRows, ...]:
        """Decisions in their buckets, or as they are where they run eagerly.

        Args:
            heads: of a round.
            is_far: whether hidden states that they read are not in `hidden_NH`.
        """
        return tuple(self._pad_head(head, is_far) for head in heads)

    def _pad_head(self, head: HeadRows, is_far: bool) -> HeadRows:
        if not self._decisions.is_on:
            return head
        reason = why_not_head(head, self._buckets)
        if is_far:
            reason = "hidden states of earlier rounds, or of too many tokens"
        if reason is None:
            return pad_head(head, self._buckets)
        self.counts[f"decisions eager: {reason}"] += 1
        return head

    def run_layers(self, sent: Sent[RoundTokens]) -> Tensor:
        """Final hidden states; in `hidden_NH`, if they fit."""
        if sent.value.is_padded:
            return self._layers.run(sent)
        result_NH = self._run_layers(sent.value)
        if len(result_NH) > len(self.hidden_NH):
            return result_NH
        return self._hidden_of(result_NH).copy_(result_NH)

    def decide(self, sent: Sent[HeadRows]) -> Tensor:
        """Words of a padded decision, which hold until the next one."""
        return self._decisions.run(sent)

    def capture_usual(
        self, head: HeadRows, num_requests: int, unit: int, *, is_gated: bool
    ) -> None:
        """Captures the rounds in which up to so many requests denoise, the largest first.

        What the device has no memory for is left out, as it would be if nobody ever asks for it.

        Args:
            head: what a request with default options asks; on the CPU.
            num_requests: that run at once.
            unit: rows that each brings.
            is_gated: whether the model has gated adapters.
        """
        for tokens in usual_tokens(self._buckets, num_requests, unit, is_gated=is_gated):
            self._capture_ahead(self._layers, tokens)
        if why_not_head(head, self._buckets) is None:
            for num_rows in usual_asked_rows(num_requests * unit):
                self._capture_ahead(self._decisions, pad_head(head, self._buckets, num_rows))

    def _capture_ahead(self, graphs: Graphs[_T], value: _T) -> None:
        if not graphs.is_on:
            return
        (sent,) = send_apart([value], self.hidden_NH.device)
        try:
            graphs.capture(sent)
        except torch.OutOfMemoryError:
            self.counts[f"{graphs.name} not captured ahead: out of memory"] += 1

    def _hidden_of(self, result_NH: Tensor) -> Tensor:
        return self.hidden_NH[: len(result_NH)]
