"""One table at the end."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from a2d_ray.quickstart.stages import Record


def print_report(
    records: Mapping[str, Record], files: Mapping[str, Path], console: Console
) -> None:
    """Prints what came out of every stage and where it lies.

    Args:
        records: by stage: prepare, plan, before, train, after, and any others for their seconds.
        files: by name: what the run left on disk.
    """
    table = Table(title="a2d-ray quickstart", title_justify="left")
    table.add_column("what")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in _rows(records):
        table.add_row(*row)
    console.print(table)
    for name, path in files.items():
        console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)


def _rows(records: Mapping[str, Record]) -> Iterator[tuple[str, str, str]]:
    data = records["prepare"].result
    run = records["train"].result
    before = records["before"].result
    after = records["after"].result
    yield (
        "held-out NELBO, nats per token",
        _number(run["nelbo_before"]),
        _number(run["nelbo_after"]),
    )
    yield "training loss, nats per token", _number(run["loss_before"]), _number(run["loss_after"])
    for name in after:
        label = f"exact match, {name} ({after[name]['num_tasks']} held-out tasks)"
        yield label, f"{before[name]['accuracy']:.0%}", f"{after[name]['accuracy']:.0%}"
    for name in after:
        figures = [_number(each[name]["tokens_per_forward"]) for each in (before, after)]
        yield f"tokens per forward, {name}", figures[0], figures[1]
    yield "training rows (packed rows)", "", f"{data['documents']:,} ({data['rows']:,})"
    yield "packing utilisation", "", f"{data['utilisation']:.1%}"
    yield "training steps", "", str(run["steps"])
    yield "training tokens/s, all streams", "", f"{run['tokens_per_s']:.0f}"
    yield "training tokens/s, targets", "", f"{run['target_tokens_per_s']:.0f}"
    for name, record in records.items():
        yield f"seconds, {name}", "", f"{record.seconds:.0f}"
    yield "seconds, all stages", "", f"{sum(r.seconds for r in records.values()):.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
