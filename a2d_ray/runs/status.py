"""What runs are doing, read from their directories, killed ones included. Starts no Ray."""

import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from a2d_ray.runs.storage import METRICS_FILE, PLAN_FILE, RunDirectory
from a2d_ray.runs.stragglers import Straggler, find_straggler

SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # what Ray Train has registered
RECENT_STEPS = 50
QUIET_S = 120.0
QUIET_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        name: of the run.
        state: ``finished``; ``running``: its metrics grew a moment ago; ``stopped``: they did not
            for longer than 10 steps and 2 minutes; ``starting``: no step yet.
        step, num_steps: optimizer steps done, and of the whole run.
        checkpoint: the last one that a resumed run would continue from; None: none yet.
        checkpoint_step: its step, 0 without one.
        loss, nelbo: last ones, nats per token.
        accepted_length: last one: tokens per forward that drafts would give; None: no AR mode.
        reward: last held-out one; None: it is no reinforcement learning.
        tokens_per_s: median of the last 50 steps.
        step_s: median seconds of the last 50 steps.
        eta_s: seconds left at this pace, evaluations and checkpoints included as they were so far.
        quiet_s: seconds since its metrics were written.
        straggler: the rank that the others kept waiting for in the last 50 steps; None: none.
    """

    name: str
    state: str
    step: int
    num_steps: int
    checkpoint: str | None
    checkpoint_step: int
    loss: float | None
    nelbo: float | None
    accepted_length: float | None
    tokens_per_s: float | None
    step_s: float | None
    eta_s: float | None
    quiet_s: float | None
    straggler: Straggler | None = None
    reward: float | None = None


def list_runs(storage_path: str) -> list[str]:
    """Names of the runs below a path or URI, in order.

    Raises:
        ValueError: no such directory.
    """
    root = RunDirectory.of(storage_path, field="storage_path")
    path = root.path
    if root.filesystem.get_file_info(path).type != pafs.FileType.Directory:
        raise ValueError(f"storage_path={storage_path} is not a directory")
    entries = root.filesystem.get_file_info(pafs.FileSelector(path))
    names = sorted(entry.base_name for entry in entries if entry.type == pafs.FileType.Directory)
    return [n for n in names if _num_steps(RunDirectory(root.filesystem, f"{path}/{n}"))]


def run_status(storage_path: str, name: str, now: float | None = None) -> RunStatus:
    """The status of one run.

    Args:
        storage_path: path or URI that holds it.
        name: of the run.
        now: seconds since the epoch; None: the clock's.

    Raises:
        ValueError: no run of this name.
    """
    directory = RunDirectory.of(storage_path, name, field="storage_path")
    num_steps = _num_steps(directory)
    if num_steps is None:
        raise ValueError(f"{storage_path} has no run {name}: {directory.path} has no {PLAN_FILE}")
    lines = _whole_lines(directory.read(METRICS_FILE))
    steps = [line for line in lines if "loss" in line]
    recent = steps[-RECENT_STEPS:]
    step = int(steps[-1]["step"]) if steps else 0
    step_s = _median(recent, "step_s")
    checkpoint, checkpoint_step = _last_checkpoint(directory)
    quiet_s = _seconds_since_written(directory, time.time() if now is None else now)
    state = _state(checkpoint_step >= num_steps, step, quiet_s, step_s)
    return RunStatus(
        name=name,
        state=state,
        step=step,
        num_steps=num_steps,
        checkpoint=checkpoint,
        checkpoint_step=checkpoint_step,
        loss=steps[-1]["loss"] if steps else None,
        nelbo=_last(lines, "eval/nelbo"),
        accepted_length=_last(lines, "eval/accepted_length"),
        tokens_per_s=_median(recent, "tokens_per_s"),
        step_s=step_s,
        eta_s=None if step_s is None else (num_steps - step) * step_s,
        quiet_s=quiet_s,
        straggler=find_straggler(recent, directory),
        reward=_last(lines, "eval/reward"),
    )


def format_status(runs: list[RunStatus]) -> str:
    """A table of runs, and a line for each that waits for a slow rank."""
    rows = [_HEADER, *(_cells(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{run.name}: {run.straggler}" for run in runs if run.straggler is not None]
    return "\n".join(lines)


_HEADER = (
    *("run", "state", "step", "loss", "nelbo", "accepted", "reward"),
    *("tokens/s", "s/step", "left", "checkpoint"),
)


def _cells(run: RunStatus) -> tuple[str, ...]:
    state = run.state
    if run.state in ("running", "stopped") and run.quiet_s is not None:
        state += f" ({duration(run.quiet_s)} ago)"
    left = "" if run.state == "finished" or run.eta_s is None else duration(run.eta_s)
    return (
        run.name,
        state,
        f"{run.step}/{run.num_steps}",
        _number(run.loss, ".3f"),
        _number(run.nelbo, ".3f"),
        _number(run.accepted_length, ".2f"),
        _number(run.reward, ".3f"),
        _number(run.tokens_per_s, ",.0f"),
        _number(run.step_s, ".3g"),
        left,
        run.checkpoint or "none yet",
    )


def duration(seconds: float) -> str:
    """Seconds in the largest two units: 3 d 4 h, 2 h 5 min, 7 min 3 s, 12 s."""
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    parts: list[str] = []
    for unit, size in units:
        count, whole = divmod(whole, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _state(is_finished: bool, step: int, quiet_s: float | None, step_s: float | None) -> str:
    if is_finished:
        return "finished"
    if quiet_s is not None and quiet_s > max(QUIET_S, QUIET_STEPS * (step_s or 0)):
        return "stopped"
    return "running" if step else "starting"


def _num_steps(directory: RunDirectory) -> int | None:
    """Steps of the whole run; None: this is no run's directory."""
    plan = directory.read(PLAN_FILE)
    return None if plan is None else json.loads(plan).get("num_steps")


def _whole_lines(content: bytes | None) -> list[dict[str, Any]]:
    """Lines of a file that may be written to, or was cut off, right now."""
    text = (content or b"").decode()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _last_checkpoint(directory: RunDirectory) -> tuple[str | None, int]:
    """Name and step of the checkpoint that a resumed run continues from."""
    snapshot = directory.read(SNAPSHOT_FILE)
    latest = json.loads(snapshot)["latest_checkpoint_result"] if snapshot else None
    if latest is None:
        return None, 0
    return latest["checkpoint_dir_name"], int(latest["metrics"]["step"])


def _seconds_since_written(directory: RunDirectory, now: float) -> float | None:
    for name in (METRICS_FILE, PLAN_FILE):
        info = directory.filesystem.get_file_info(f"{directory.path}/{name}")
        if info.mtime_ns is not None:
            return max(0.0, now - info.mtime_ns / 1e9)
    return None


def _last(lines: list[dict[str, Any]], key: str) -> float | None:
    return next((line[key] for line in reversed(lines) if key in line), None)


def _median(lines: list[dict[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if key in line]
    return statistics.median(values) if values else None
