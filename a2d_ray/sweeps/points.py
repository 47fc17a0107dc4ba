"""Where a trial's run lies, and the point of the search space that it trains. No Ray here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRIALS_DIRECTORY = "trials"
POINT_FILE = "point.json"


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial.

    Attributes:
        trial: its id; its run is trials/trial-ID.
        status: ``finished``, ``stopped`` (early, by the scheduler or the budget) or ``failed``.
        percent: how far it got.
        nelbo: last held-out NELBO, nats per token; None: it never got there.
        exact_match: share of right answers; None: not measured.
        accepted_length: of held-out drafts, tokens per forward; None: there is no AR mode.
        reward: mean held-out reward; None: it is no reinforcement learning.
        point: value of each searched key.
        block_size: blocks whose NELBO this is; 0: mdlm.
        error: first line of what went wrong.
    """

    trial: str
    status: str
    percent: float
    nelbo: float | None
    exact_match: float | None
    point: dict[str, Any]
    block_size: int
    accepted_length: float | None = None
    reward: float | None = None
    error: str = ""


def run_name(trial_id: str) -> str:
    """Name of a trial's run: it stays when the sweep is restored, so the run goes on."""
    return f"trial-{trial_id}"


def write_point(point: dict[str, Any], run: Path) -> None:
    """Notes a trial's point in its run's directory, whole or not at all.

    Ray forgets the point of a trial that had failed when its sweep is restored.
    """
    run.mkdir(parents=True, exist_ok=True)
    draft = run / f".{POINT_FILE}"
    draft.write_text(json.dumps(point))
    draft.replace(run / POINT_FILE)


def read_point(run: Path) -> dict[str, Any]:
    """The point that `write_point` noted; empty: the trial never started."""
    file = run / POINT_FILE
    return json.loads(file.read_text()) if file.is_file() else {}
