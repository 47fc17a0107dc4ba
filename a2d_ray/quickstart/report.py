"""Two tables at the end: the answers, and the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from a2d_ray.quickstart.stages import Record

RULE_NAMES = {"ar": "AR mode"}


def print_report(
    records: Mapping[str, Record], files: Mapping[str, Path], console: Console
) -> None:
    """Prints what came out of every stage and where it lies.

    Args:
        records: by stage: own answers, prepare, before, train, after, and others for their seconds.
        files: by name: what the run left on disk.
    """
    rules = list(next(iter(records["after"].result["tasks"].values())))
    answers = Table(title="Answers to held-out tasks, one client", title_justify="left")
    answers.add_column("")
    answers.add_column("AR original", justify="right")
    for rule in rules:
        answers.add_column(RULE_NAMES.get(rule, rule), justify="right")
    for row in _answer_rows(records, rules):
        answers.add_row(*row)
    console.print(answers)
    run = Table(title="The run", title_justify="left")
    run.add_column("")
    run.add_column("", justify="right")
    for row in _run_rows(records):
        run.add_row(*row)
    console.print(run)
    for name, path in files.items():
        console.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)


def _answer_rows(records: Mapping[str, Record], rules: list[str]) -> Iterator[tuple[str, ...]]:
    before = records["before"].result["tasks"]
    after = records["after"].result["tasks"]
    for name, figures in after.items():
        tasks = f"{name} ({figures[rules[0]]['num_tasks']} tasks)"
        was = before[name]["ar"]
        shares = [f"{figures[rule]['accuracy']:.0%}" for rule in rules]
        yield f"right, {tasks}", f"{was['accuracy']:.0%}", *shares
        yield "  equal to the AR mode's", "", *(f"{figures[r]['equal']:.0%}" for r in rules)
        for key, label, form in (
            ("tokens_per_forward", "  tokens per forward", "{:.2f}"),
            ("tokens_per_s", "  tokens per second", "{:.0f}"),
        ):
            yield label, form.format(was[key]), *(form.format(figures[r][key]) for r in rules)


def _run_rows(records: Mapping[str, Record]) -> Iterator[tuple[str, str]]:
    data = records["prepare"].result
    run = records["train"].result
    asked = len(records["own answers"].result["held_out"])
    same = records["after"].result["same"]
    yield "general questions (held out) answered word for word as before", f"{same} of {asked}"
    nelbos = (_number(run["nelbo_before"]), _number(run["nelbo_after"]))
    yield "held-out NELBO, nats per token", " -> ".join(nelbos)
    yield "training loss, nats per token", f"{run['loss_before']:.2f} -> {run['loss_after']:.2f}"
    yield "accepted length on held-out rows, tokens", _number(run["accepted_length"])
    yield "training rows (packed rows)", f"{data['documents']:,} ({data['rows']:,})"
    yield "packing utilisation", f"{data['utilisation']:.1%}"
    yield "training steps", str(run["steps"])
    yield "training tokens/s, all streams", f"{run['tokens_per_s']:.0f}"
    yield "training tokens/s, targets", f"{run['target_tokens_per_s']:.0f}"
    for name, record in records.items():
        yield f"seconds, {name}", f"{record.seconds:.0f}"
    yield "seconds, all stages", f"{sum(r.seconds for r in records.values()):.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
