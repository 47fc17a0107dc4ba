"""What a sweep found: a table, a CSV, plots, and the best configuration."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.cli import to_yaml
from a2d_ray.config import SweepConfig
from a2d_ray.sweeps.plots import write_plots
from a2d_ray.sweeps.points import TRIALS_DIRECTORY, TrialRow, read_point, run_name
from a2d_ray.sweeps.space import trial_config, varies_blocks

CSV_FILE = "results.csv"
BEST_CONFIG_FILE = "best.yaml"


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """All trials of a sweep.

    Attributes:
        rows: best first, failed ones last; with several block sizes, grouped by them unless the
            metric compares them.
        best: file of the best configuration, by group; empty: no trial finished.
        directory: of the sweep.
    """

    rows: list[TrialRow]
    best: dict[str, Path]
    directory: Path


def write_results(results: Any, config: SweepConfig, directory: Path) -> SweepResults:
    """Collects a Tuner's results and writes results.csv, plots and the best configurations."""
    rows = sort_rows([_row(result, config, directory) for result in results], config)
    _write_csv(rows, directory / CSV_FILE)
    best = _write_best(rows, config, directory)
    write_plots(rows, config.sweep.metric, directory)
    return SweepResults(rows=rows, best=best, directory=directory)


def sort_rows(rows: list[TrialRow], config: SweepConfig) -> list[TrialRow]:
    """Best first; NELBO compares within a block size only."""
    metric = config.sweep.metric

    def key(row: TrialRow) -> tuple[Any, ...]:
        value = getattr(row, metric)
        is_missing = value is None or not math.isfinite(value)
        order = 0.0 if is_missing else value if metric == "nelbo" else -value
        group = row.block_size if metric == "nelbo" else 0
        return is_missing or row.status == "failed", group, -row.percent, order

    return sorted(rows, key=key)


def format_results(results: SweepResults, metric: str) -> str:
    """The trials as a table, and where things lie."""
    keys = list(dict.fromkeys(key for row in results.rows for key in row.point))
    header = ("trial", "status", "done", "nelbo", "exact match", "accepted", "reward", *keys)
    cells = [header, *(_cells(row, keys) for row in results.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines += [f"{row.trial}: {row.error}" for row in results.rows if row.error]
    if len(results.best) > 1 and metric == "nelbo":
        lines.append("NELBO compares within one block size: a best configuration for each")
    lines += [
        f"best {group}: {path}".replace("best :", "best:") for group, path in results.best.items()
    ]
    return "\n".join(lines)


def _cells(row: TrialRow, keys: list[str]) -> tuple[str, ...]:
    return (
        row.trial,
        row.status,
        f"{row.percent:.0f}%",
        "" if row.nelbo is None else f"{row.nelbo:.4f}",
        "" if row.exact_match is None else f"{row.exact_match:.1%}",
        "" if row.accepted_length is None else f"{row.accepted_length:.2f}",
        "" if row.reward is None else f"{row.reward:.3f}",
        *(_short(row.point.get(key)) for key in keys),
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _row(result: Any, config: SweepConfig, directory: Path) -> TrialRow:
    metrics = result.metrics or {}
    trial = str(metrics.get("trial_id") or _trial_id(result.path))
    point = dict(result.config or read_point(directory / TRIALS_DIRECTORY / run_name(trial)))
    percent = float(metrics.get("percent", 0.0))
    status = "finished" if percent >= 100 else "stopped"
    error = ""
    if result.error is not None:
        status = "failed"
        error = _first_line(result.error)
    return TrialRow(
        trial=trial,
        status=status,
        percent=percent,
        nelbo=metrics.get("nelbo"),
        exact_match=metrics.get("exact_match"),
        accepted_length=metrics.get("accepted_length"),
        reward=metrics.get("reward"),
        point=point,
        block_size=_block_size(point, config),
        error=error,
    )


def _trial_id(path: str) -> str:
    """A trial's id in the name of its directory: run_trial_ID_NUMBER_VALUES."""
    match = re.match(r"run_trial_([0-9a-f]{8}|[0-9a-f]{5}_[0-9]{5})_", Path(path).name)
    return match.group(1) if match else Path(path).name


def _first_line(error: BaseException) -> str:
    """What went wrong: the last line of a remote traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _block_size(point: dict[str, Any], config: SweepConfig) -> int:
    objective = config.train.objective
    if point.get("objective.name", objective.name) == "mdlm":
        return 0
    return int(point.get("objective.block_size", objective.block_size))


def _write_csv(rows: list[TrialRow], path: Path) -> None:
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    results = ("nelbo", "exact_match", "accepted_length", "reward")
    columns = ("trial", "status", "percent", *results, "block_size", "error")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *keys])
        for row in rows:
            values = [getattr(row, column) for column in columns]
            writer.writerow([*values, *(row.point.get(key) for key in keys)])


def _write_best(rows: list[TrialRow], config: SweepConfig, directory: Path) -> dict[str, Path]:
    """Configurations that a training job runs as they are; one per block size if they vary."""
    keys = [key for row in rows for key in row.point]
    is_grouped = config.sweep.metric == "nelbo" and varies_blocks(keys)
    best: dict[str, Path] = {}
    for row in rows:
        if row.status != "finished" or getattr(row, config.sweep.metric) is None:
            continue
        blocks = "mdlm" if row.block_size == 0 else f"block-{row.block_size}"
        group = blocks if is_grouped else ""
        if group in best:
            continue
        name = "-".join(filter(None, (config.sweep.name, "best", group)))
        path = directory / (f"best-{group}.yaml" if group else BEST_CONFIG_FILE)
        base = config.train
        run = trial_config(base, row.point, name=name, storage_path=base.run.storage_path)
        run = run.model_copy(
            update={
                "run": run.run.model_copy(update={"resume": False}),
                "schedule": run.schedule.model_copy(
                    update={
                        "save_steps": base.schedule.save_steps,
                        "keep_last": base.schedule.keep_last,
                    }
                ),
            }
        )
        path.write_text(to_yaml(run))
        best[group] = path
    return best
