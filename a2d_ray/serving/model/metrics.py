"""Prometheus metrics, named after vLLM's with ``a2d:`` for ``vllm:``.

Every replica counts for itself, with the labels ``model_name`` and ``replica``; the ingress merges
what they say into one page. Times count from a request's arrival at the ingress.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from a2d_ray.serving.openai.pieces import Piece

if TYPE_CHECKING:  # the ingress needs no torch
    from a2d_ray.generation.engine.engine import Engine, StepOutput

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_RATIOS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class ModelMetrics:
    """What one replica counts.

    Args:
        model: id that clients use.
        replica: name of this process.
        engine: whose state is read when the metrics are.
    """

    def __init__(self, model: str, replica: str, engine: "Engine") -> None:
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model, "replica": replica}
        self._make_counters()
        self._make_histograms()
        self._make_gauges(engine)

    def _make_counters(self) -> None:
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._tokens = self._counter("generation_tokens", "Tokens emitted.")
        self._cached = self._counter("prefix_cache_hits", "Prompt tokens found stored.")
        self._queried = self._counter("prefix_cache_queries", "Prompt tokens looked for.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Drafts verified.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafts accepted.")
        self._success = Counter(
            "a2d:request_success",
            "Answers that ended, by reason (abort: the client left, or the answer failed).",
            [*self._labels, "finished_reason"],
            registry=self._registry,
        )

    def _make_histograms(self) -> None:
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From arrival to the end of the first round.", _SECONDS
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first final token.", _SECONDS
        )
        self.first_block = self._histogram(
            "time_to_first_block_seconds", "From arrival to the first whole block.", _SECONDS
        )
        self.between = self._histogram(
            "inter_chunk_latency_seconds", "Between two pieces of one answer.", _SHORT_SECONDS
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "From arrival to the end of the answer.", _SECONDS
        )
        self.per_forward = self._histogram(
            "tokens_per_forward", "Tokens emitted per forward of an answer.", _RATIOS
        )
        self.per_block = self._histogram(
            "denoise_steps_per_block", "Denoise steps of a whole block.", _COUNTS
        )

    def _make_gauges(self, engine: "Engine") -> None:
        for name, attribute, what in (
            ("num_requests_running", "num_running", "Answers in the engine's rounds."),
            ("num_requests_waiting", "num_waiting", "Answers that wait for a place in them."),
            ("kv_cache_usage_perc", "kv_usage", "Share of the KV store in use, 0 to 1."),
            ("engine_rounds", "num_rounds", "Forwards of the engine."),
            ("positions_evaluated", "num_positions", "Token positions in those forwards."),
        ):
            gauge = Gauge(f"a2d:{name}", what, list(self._labels), registry=self._registry)
            read = partial(getattr, engine, attribute)
            gauge.labels(**self._labels).set_function(read)

    def watch(self, arrived: float) -> "ChoiceWatch":
        """The times of one answer, whose request arrived at this `time.time()`."""
        return ChoiceWatch(self, arrived)

    def finished(self, piece: Piece | None, reason: str) -> None:
        """Counts an answer that ended, by its last piece."""
        self._success.labels(**self._labels, finished_reason=reason).inc()
        if piece is None:
            return
        counts = piece.counts
        self._prompt_tokens.inc(counts.num_prompt_tokens)
        self._queried.inc(counts.num_prompt_tokens)
        self._cached.inc(counts.num_cached_tokens)
        self._tokens.inc(counts.num_tokens)
        self._drafted.inc(counts.num_drafted)
        self._accepted.inc(counts.num_accepted)
        self.per_forward.observe(counts.num_tokens / max(counts.num_forwards, 1))

    def text(self) -> str:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def _counter(self, name: str, what: str) -> Counter:
        counter = Counter(f"a2d:{name}", what, list(self._labels), registry=self._registry)
        return counter.labels(**self._labels)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"a2d:{name}", what, list(self._labels), registry=self._registry, buckets=buckets
        )
        return histogram.labels(**self._labels)


class ChoiceWatch:
    """Times of one answer; `ended` is called however it ends."""

    def __init__(self, metrics: ModelMetrics, arrived: float) -> None:
        waited_s = max(0.0, time.time() - arrived)  # another node's clock may be ahead
        self._metrics = metrics
        self._arrived = time.perf_counter() - waited_s
        self._has_begun = self._has_token = self._has_block = False
        self._steps_before = 0
        self._last: tuple[float, Piece] | None = None

    def round(self, output: "StepOutput") -> None:
        """A round of the engine brought this."""
        waited = time.perf_counter() - self._arrived
        metrics = self._metrics
        if not self._has_begun:
            metrics.queue_time.observe(waited)
        if output.token_ids and not self._has_token:
            metrics.first_token.observe(waited)
            self._has_token = True
        self._has_begun = True
        is_block_whole = not output.is_draft and None not in output.canvas
        if not is_block_whole or output.num_denoise_steps == self._steps_before:
            return
        if not self._has_block:
            metrics.first_block.observe(waited)
        self._has_block = True
        metrics.per_block.observe(output.num_denoise_steps - self._steps_before)
        self._steps_before = output.num_denoise_steps

    def piece(self, piece: Piece) -> None:
        """This went to the client."""
        now = time.perf_counter()
        if self._last is not None:
            self._metrics.between.observe(now - self._last[0])
        self._last = (now, piece)

    def ended(self) -> None:
        """The answer is over, whole or not."""
        piece = self._last[1] if self._last else None
        reason = (piece.finish_reason if piece else None) or "abort"
        self._metrics.latency.observe(time.perf_counter() - self._arrived)
        self._metrics.finished(piece, reason)


class EndpointMetrics:
    """What the ingress counts of one model.

    Args:
        model: id that clients use.
        num_requests: reads how many there are.
    """

    def __init__(self, model: str, num_requests: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        gauge = Gauge(
            "a2d:num_requests_at_endpoint",
            "Requests that are not answered yet: in replicas, and waiting for one.",
            ["model_name"],
            registry=self._registry,
        )
        gauge.labels(model_name=model).set_function(num_requests)

    def text(self) -> str:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry).decode()


class HttpMetrics:
    """What the HTTP application counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "a2d:http_requests",
            "Answered requests, by route and status (499: the client left).",
            ["method", "route", "status"],
            registry=self._registry,
        )

    def count(self, method: str, route: str, status: int) -> None:
        """Counts an answered request."""
        known = method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._requests.labels(method=known, route=route, status=str(status)).inc()

    def text(self) -> str:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry).decode()


def merge(texts: Iterable[str]) -> str:
    """One page of several: families of one name become one family."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            if families[family.name] is not family:
                families[family.name].samples.extend(family.samples)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry).decode()


class _Families:
    """A collector of metrics that were read elsewhere."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are."""
        yield from self._families
