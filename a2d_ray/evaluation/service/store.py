"""Evaluations on disk: one directory each, so that they survive the process that runs them.

``ID/config.json`` is what runs, ``state.json`` how far it came, ``progress.json`` what the worker
says of itself; answers and the report lie beside them (`a2d_ray.evaluation.harness.suite`).
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from a2d_ray.config import EvaluateConfig
from a2d_ray.http.errors import RequestError
from a2d_ray.runs.storage import write_whole

_log = logging.getLogger(__name__)

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
_ID = re.compile(r"eval-[0-9a-f]{24}")


class Evaluation(BaseModel):
    """How far an evaluation came.

    Attributes:
        id: begins with the time, so that ids sort by age.
        caller: who started it (`Caller.name`).
        tasks: name, metric and limit of each.
        skipped: tasks of the suite that do not run, with the reason.
        created_at, started_at, finished_at: seconds since 1970.
        num_attempts: workers that were started.
        error: why it failed.
        results: a number with its interval per task, when it is completed.
    """

    id: str
    caller: str
    status: Status = "queued"
    suite: str
    model: str
    tasks: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    num_attempts: int = 0
    error: str | None = None
    results: dict[str, dict[str, Any]] | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more happens to it."""
        return self.status not in ("queued", "in_progress")


class EvaluationStore:
    """The evaluations below a directory.

    Args:
        path: made if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def create(
        self, config: EvaluateConfig, *, caller: str, skipped: list[dict[str, str]]
    ) -> Evaluation:
        """Writes a new evaluation; it is there as a whole or not at all."""
        evaluation = Evaluation(
            id=f"eval-{time.time_ns():016x}{secrets.token_hex(4)}",
            caller=caller,
            suite=config.name,
            model=str(config.served_model),
            tasks=[task.model_dump(include={"task", "metric", "limit"}) for task in config.tasks],
            skipped=skipped,
            created_at=int(time.time()),
        )
        place = self.directory(evaluation.id)
        half = place.with_name(f".{place.name}")
        half.mkdir()
        config = config.model_copy(update={"output": str(place)})
        (half / "config.json").write_text(config.model_dump_json())
        (half / "state.json").write_text(evaluation.model_dump_json())
        half.rename(place)
        return evaluation

    def directory(self, evaluation_id: str) -> Path:
        """Where the files of an evaluation lie."""
        return self.path / evaluation_id

    def read(self, evaluation_id: str) -> Evaluation:
        """The evaluation.

        Raises:
            RequestError: 404.
        """
        if _ID.fullmatch(evaluation_id):
            try:
                text = (self.directory(evaluation_id) / "state.json").read_text()
                return Evaluation.model_validate_json(text)
            except FileNotFoundError:
                pass
            except ValidationError as error:
                _log.warning("%s/%s is not readable: %s", self.path, evaluation_id, error)
        raise RequestError(
            f"The evaluation {evaluation_id!r} does not exist: GET /v1/evaluations lists yours",
            status=404,
            code="evaluation_not_found",
        )

    def write(self, evaluation: Evaluation) -> None:
        """Replaces the state."""
        write_whole(self.directory(evaluation.id) / "state.json", evaluation.model_dump_json())

    def ids(self) -> list[str]:
        """All ids, oldest first."""
        return sorted(path.name for path in self.path.iterdir() if _ID.fullmatch(path.name))

    def all(self, ids: list[str]) -> Iterator[Evaluation]:
        """The evaluations with these ids that can be read."""
        for each in ids:
            try:
                yield self.read(each)
            except RequestError:
                continue

    def progress(self, evaluation_id: str) -> dict[str, Any]:
        """What the worker wrote last."""
        try:
            found: dict[str, Any] = json.loads(
                (self.directory(evaluation_id) / "progress.json").read_text()
            )
        except FileNotFoundError:
            return {}
        return found
