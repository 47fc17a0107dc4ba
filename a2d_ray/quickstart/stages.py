"""Stages that ran leave a record; a stage whose record still holds is skipped."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from a2d_ray.runs.storage import write_whole


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished stage leaves behind.

    Attributes:
        inputs: everything that the stage depends on, as JSON.
        result: what it found out, as JSON.
        seconds: wall time that it took.
    """

    inputs: dict[str, Any]
    result: dict[str, Any]
    seconds: float

    @property
    def digest(self) -> str:
        """Changes with the inputs; a later stage names it among its own inputs."""
        text = json.dumps(self.inputs, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has(self, inputs: dict[str, Any]) -> bool:
        """Whether the stage ran with these inputs."""
        return self.inputs == _as_json(inputs)


class Stages:
    """Runs stages in order, each at most once per set of inputs.

    Args:
        root: directory of the quickstart; records lie in ``root/stages``.
        console: where headings are printed.
        num_stages: how many stages there are, for the headings.
    """

    def __init__(self, root: Path, console: Console, num_stages: int) -> None:
        self.folder = root / "stages"
        self.console = console
        self.num_stages = num_stages
        self.seconds: dict[str, float] = {}

    def run(
        self,
        name: str,
        inputs: dict[str, Any],
        stage: Callable[[], dict[str, Any]],
        *,
        outputs: Sequence[Path] = (),
        is_kept: bool = True,
    ) -> Record:
        """The record of a stage, which runs unless its record has these inputs.

        Args:
            name: name of the stage and of its record.
            inputs: what the stage depends on, as JSON.
            stage: does the work; returns its result as JSON.
            outputs: paths without which the record does not hold.
            is_kept: False: run every time and leave no record.
        """
        heading = f"[{len(self.seconds) + 1}/{self.num_stages}] {name}"
        record = self.find(name) if is_kept else None
        if record and record.has(inputs) and all(path.exists() for path in outputs):
            self.console.print(f"{heading}: done before, in {record.seconds:.0f} s", markup=False)
        else:
            self.console.print(f"\n{heading}", style="bold", markup=False)
            start = time.perf_counter()
            result = _as_json(stage())
            seconds = time.perf_counter() - start
            record = Record(inputs=_as_json(inputs), result=result, seconds=seconds)
            if is_kept:
                self._write(name, record)
            self.console.print(f"{name}: {seconds:.0f} s", style="dim", markup=False)
        self.seconds[name] = record.seconds
        return record

    def find(self, name: str) -> Record | None:
        """The record that a stage left, whatever its inputs were; None if there is none."""
        path = self.folder / f"{name}.json"
        try:
            return Record(**json.loads(path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None  # a record of another version does not hold either

    def _write(self, name: str, record: Record) -> None:
        write_whole(self.folder / f"{name}.json", json.dumps(asdict(record), indent=1))


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """What reading the written value back gives, so that records compare equal."""
    return json.loads(json.dumps(value))
