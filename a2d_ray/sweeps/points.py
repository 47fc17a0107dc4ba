"""Where a trial's run lies, and the point of the search space that it trains. No Ray here."""

import json
from pathlib import Path
from typing import Any

TRIALS_DIRECTORY, POINT_FILE = "trials", "point.json"


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
