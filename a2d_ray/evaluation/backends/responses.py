"""Requests to results: what was answered before comes from the cache, the rest from a backend."""

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from a2d_ray.evaluation.backends.local import Backend
from a2d_ray.evaluation.backends.requests import (
    Answer,
    BackendRequest,
    BackendResult,
    GenerateRequest,
    Score,
    ScoreRequest,
    to_values,
)
from a2d_ray.evaluation.backends.score_batches import plan_batches
from a2d_ray.models.contract import Contract
from a2d_ray.terminal.progress import Progress

_log = logging.getLogger(__name__)

CACHE_FORMAT = 2  # of what is kept; results of another one are not read


class ResponseCache:
    """Results on disk, keyed by model, contract, sampling and prompt.

    One SQLite file, written result by result, so an evaluation that was killed goes on where it
    was. Several models share a file.

    Args:
        path: the file; made if it is missing. ``:memory:`` keeps results while this process lives.
        fingerprint: of the model (`Description.fingerprint`).
    """

    def __init__(self, path: str | Path, fingerprint: dict[str, Any]) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT)")
        self._prefix = json.dumps([CACHE_FORMAT, fingerprint], sort_keys=True)

    def get(self, request: BackendRequest) -> BackendResult | None:
        """The result, if it is there."""
        row = self._db.execute(
            "SELECT value FROM results WHERE key = ?", (self._key(request),)
        ).fetchone()
        if row is None:
            return None
        kind = Answer if isinstance(request, GenerateRequest) else Score
        return kind(**json.loads(row[0]))

    def put(self, request: BackendRequest, result: BackendResult) -> None:
        """Keeps a result."""
        values = (self._key(request), json.dumps(asdict(result)))
        self._db.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", values)

    def _key(self, request: BackendRequest) -> str:
        text = self._prefix + json.dumps(to_values(request), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Speed:
    """Sums over the answers that were generated, not read from the cache.

    Attributes:
        num_answers, num_tokens, num_forwards: of these answers.
        seconds: wall time.
    """

    num_answers: int = 0
    num_tokens: int = 0
    num_forwards: int = 0
    seconds: float = 0.0


class Responder:
    """Answers requests through a cache.

    Args:
        backend: who answers.
        cache: of results; None: nothing is kept.
        contract: of the model, by which NELBOs are batched; None: there are none.
        is_quiet: no progress bar.

    Attributes:
        speed: of what was generated so far.
        num_cut: answers so far whose prompt was too long (`Answer.is_cut`).
        observe: called with how many results are there, and of how many, as they come.
    """

    def __init__(
        self,
        backend: Backend,
        cache: ResponseCache | None = None,
        *,
        contract: Contract | None = None,
        is_quiet: bool = False,
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._is_quiet = is_quiet
        self._contract = contract
        self.speed = Speed()
        self.num_cut = 0
        self.observe: Callable[[int, int], None] = lambda num_done, num_asked: None

    def forget(self) -> None:
        """Reads and keeps nothing from here on: for those who measure speed."""
        self._cache = None

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Answer]:
        """An answer for each request, in their order."""
        known = {i: found for i, r in enumerate(requests) if (found := self._cached(r))}
        missing = [i for i in range(len(requests)) if i not in known]
        started = time.perf_counter()
        with self._progress("generate", len(requests), len(known)) as progress:
            self.observe(len(known), len(requests))
            asked = [requests[i] for i in missing]
            for place, answer in self._backend.generate(asked) if asked else ():
                known[missing[place]] = answer
                self._keep(asked[place], answer)
                self._count(answer)
                progress.move_to(len(known))
                self.observe(len(known), len(requests))
        self.speed.seconds += time.perf_counter() - started
        self._count_cut(sum(answer.is_cut for answer in known.values()), len(requests))
        return [known[i] for i in range(len(requests))]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """A score for each request, in their order.

        Batches are planned over all requests, and one that is known in part is computed again as
        a whole: so an evaluation that goes on gives the bits of one that was never interrupted.
        """
        known = {i: found for i, r in enumerate(requests) if (found := self._cached(r))}
        planned = plan_batches(requests, self._contract)
        batches = [batch for batch in planned if not all(i in known for i in batch)]
        num_done = len(requests) - sum(map(len, batches))
        with self._progress("score", len(requests), num_done) as progress:
            self.observe(num_done, len(requests))
            asked = [[requests[i] for i in batch] for batch in batches]
            for place, scores in self._backend.score(asked) if asked else ():
                for i, score in zip(batches[place], scores, strict=True):
                    known[i] = score
                    self._keep(requests[i], score)
                num_done += len(scores)
                progress.move_to(num_done)
                self.observe(num_done, len(requests))
        return [known[i] for i in range(len(requests))]

    def _cached(self, request: BackendRequest) -> Any:
        return None if self._cache is None else self._cache.get(request)

    def _count_cut(self, num_cut: int, num_asked: int) -> None:
        self.num_cut += num_cut
        if num_cut:
            _log.warning(
                "%d of %d prompts were too long: their oldest tokens were left out, or the server "
                "refused them and their answers are empty",
                num_cut,
                num_asked,
            )

    def _keep(self, request: BackendRequest, result: BackendResult) -> None:
        is_refused = isinstance(result, Answer) and result.finish_reason == "refused"
        if self._cache is not None and not is_refused:
            self._cache.put(request, result)

    def _count(self, answer: Answer) -> None:
        self.speed.num_answers += 1
        self.speed.num_tokens += answer.num_tokens
        self.speed.num_forwards += answer.num_forwards or 0

    def _progress(self, name: str, total: int, start: int) -> Progress:
        return Progress(name, total, "request", start=start, is_quiet=self._is_quiet)
