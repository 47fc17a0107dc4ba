"""Runs evaluations one at a time, each in a process of its own; no Ray."""

import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import a2d_ray
from a2d_ray.config import EvaluateConfig
from a2d_ray.evaluation.report.report import speed
from a2d_ray.evaluation.report.statistics import estimate
from a2d_ray.evaluation.service.store import Evaluation, EvaluationStore
from a2d_ray.evaluation.service.worker import TRY_AGAIN
from a2d_ray.http.errors import RequestError, overloaded

_log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3  # that end without a result of their own: a lost endpoint, a killed worker
_GRACE_S = 5.0
_POLL_S = 1.0
_MODEL_TIMEOUT_S = 600.0


class Runner:
    """Runs what is queued in a store, oldest first; what was interrupted goes on.

    Args:
        store: of the evaluations. One runner at a time works on it; others wait for its lock.
        serves: whether the endpoint serves a model now.
        max_queued: evaluations that may wait.
        api_key: that the workers send to the endpoint; None: ``OPENAI_API_KEY``, if it is set.
    """

    def __init__(
        self,
        store: EvaluationStore,
        serves: Callable[[str], bool],
        *,
        max_queued: int = 16,
        api_key: str | None = None,
    ) -> None:
        self.store = store
        self._serves = serves
        self._max_queued = max_queued
        self._api_key = api_key
        self._changed = threading.Condition()  # guards states on disk and the three below
        self._pending: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run_all, name="evaluations", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def close(self) -> None:
        """Stops; what runs stays ``in_progress`` and goes on with the next runner."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(2 * _GRACE_S)

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def submit(
        self, config: EvaluateConfig, *, caller: str, skipped: list[dict[str, str]]
    ) -> Evaluation:
        """Queues an evaluation.

        Raises:
            RequestError: 429, too many wait.
        """
        with self._changed:
            states = self.store.all(self._pending)
            if sum(each.status == "queued" for each in states) >= self._max_queued:
                raise overloaded(f"{self._max_queued} evaluations wait already: try again later")
            evaluation = self.store.create(config, caller=caller, skipped=skipped)
            self._pending.append(evaluation.id)
            self._changed.notify_all()
            return evaluation

    def cancel(self, evaluation: Evaluation) -> Evaluation:
        """Ends an evaluation; one that is over stays as it is."""
        with self._changed:
            found = self.store.read(evaluation.id)
            if found.is_over:
                return found
            found = self._finish(found.id, status="cancelled")
            self._changed.notify_all()
            return found

    def _run_all(self) -> None:
        with open(self.store.path / ".lock", "w") as lock:
            while not _try_lock(lock):  # another replica is about to end
                if self._is_over(None, wait_s=_POLL_S):
                    return
            with self._changed:
                found = self.store.all(self.store.ids())
                self._pending = [each.id for each in found if not each.is_over]
            while (evaluation_id := self._next()) is not None:
                try:
                    self._run(evaluation_id)
                except RequestError:
                    _log.warning("evaluation %s was removed from the disk", evaluation_id)
                except Exception as error:  # a defect of ours must not end the thread
                    _log.exception("evaluation %s failed", evaluation_id)
                    self._finish(evaluation_id, status="failed", error=f"internal error: {error}")

    def _next(self) -> str | None:
        """The oldest that is not over; None: closed."""
        with self._changed:
            while not self._is_closed:
                while self._pending:
                    if any(not each.is_over for each in self.store.all(self._pending[:1])):
                        return self._pending[0]
                    self._pending.pop(0)
                self._changed.wait()
        return None

    def _run(self, evaluation_id: str) -> None:
        since = self.store.read(evaluation_id).started_at or int(time.time())
        evaluation = self._update(evaluation_id, status="in_progress", started_at=since)
        if not self._wait_for_model(evaluation):
            return
        directory = self.store.directory(evaluation_id)
        (directory / "error.txt").unlink(missing_ok=True)
        evaluation = self._update(evaluation_id, num_attempts=evaluation.num_attempts + 1)
        code = self._work(evaluation)
        if code is None:
            return
        if code == 0:
            report = json.loads((directory / "report.json").read_text())
            self._finish(evaluation_id, status="completed", results=results_of(report))
        elif (code < 0 or code == TRY_AGAIN) and evaluation.num_attempts < _MAX_ATTEMPTS:
            _log.warning("evaluation %s: attempt ended with %d", evaluation_id, code)
        else:
            self._finish(evaluation_id, status="failed", error=_why(directory, code))

    def _wait_for_model(self, evaluation: Evaluation) -> bool:
        """Whether the endpoint serves the model; after a restart that takes a while."""
        until = time.monotonic() + _MODEL_TIMEOUT_S
        while not self._serves(evaluation.model):
            if time.monotonic() > until:
                error = f"the endpoint does not serve {evaluation.model!r}"
                self._finish(evaluation.id, status="failed", error=error)
            if self._is_over(evaluation.id, wait_s=_POLL_S):
                return False
        return not self._is_over(evaluation.id, wait_s=0)

    def _work(self, evaluation: Evaluation) -> int | None:
        """The exit code of a worker; None: it was cancelled, or this runner closed."""
        directory = self.store.directory(evaluation.id)
        with open(directory / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "a2d_ray.evaluation.service.worker", str(directory)],
                stdin=subprocess.PIPE,  # closes with this process: the worker ends, too
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        try:
            while process.poll() is None:
                if self._is_over(evaluation.id, wait_s=0.2):
                    return None
            return process.returncode
        finally:
            _end(process)

    def _environment(self) -> dict[str, str]:
        source = str(Path(a2d_ray.__file__).parent.parent)
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths)}
        if self._api_key is not None:
            own["OPENAI_API_KEY"] = self._api_key
        return {**os.environ, **own}

    def _is_over(self, evaluation_id: str | None, *, wait_s: float) -> bool:
        """Whether the evaluation was cancelled or this runner closed, after at most `wait_s`."""
        with self._changed:
            if wait_s and not self._is_closed:
                self._changed.wait(wait_s)
            if self._is_closed or evaluation_id is None:
                return self._is_closed
            return self.store.read(evaluation_id).is_over

    def _update(self, evaluation_id: str, **values: Any) -> Evaluation:
        """Changes an evaluation unless it is over."""
        with self._changed:
            found = self.store.read(evaluation_id)
            if not found.is_over:
                found = found.model_copy(update=values)
                self.store.write(found)
            return found

    def _finish(self, evaluation_id: str, **values: Any) -> Evaluation:
        return self._update(evaluation_id, finished_at=int(time.time()), **values)


def results_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers of a report, with their 95 % intervals."""
    found = {}
    for name, task in report["tasks"].items():
        interval = estimate([row["value"] for row in task["samples"]])
        tpf, per_s = speed(task)
        found[name] = {
            "metric": task["metric"],
            "value": task["value"],
            "low": interval.low if math.isfinite(interval.low) else None,
            "high": interval.high if math.isfinite(interval.high) else None,
            "num_documents": task["num_documents"],
            "higher_is_better": task["higher_is_better"],
            "tokens_per_forward": tpf,
            "tokens_per_s": per_s,
        }
    return found


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _why(directory: Path, code: int) -> str:
    """What the worker said, or the last line of its log."""
    with contextlib.suppress(FileNotFoundError):
        return (directory / "error.txt").read_text()
    lines = (directory / "log.txt").read_text(errors="replace").strip().splitlines()
    return f"the evaluation ended with exit code {code}: {lines[-1] if lines else 'no output'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to end, and after a while ends its session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
