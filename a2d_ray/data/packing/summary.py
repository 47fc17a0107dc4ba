"""A packed set's manifest as tables for the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from a2d_ray.terminal.streams import console as terminal_console


def unread_lines(manifest: dict[str, Any]) -> list[str]:
    """A line for everything that held text and was not read."""
    return [
        f"not read from {source}: {what}"
        + ("" if what.startswith("file ") else f", {count:,} rows")
        for source, found in manifest["unread"].items()
        for what, count in found.items()
    ]


def print_summary(manifest: dict[str, Any], path: Path, console: Console | None = None) -> None:
    """Prints counts by split and source, what was dropped and why, and where the set lies."""
    console = console or terminal_console()
    table = Table(title="Packed rows")
    table.add_column("split / source")
    for name in ("rows", "documents", "tokens", "targets", "utilisation"):
        table.add_column(name, justify="right")
    for split, counts in manifest["splits"].items():
        table.add_row(
            f"[bold]{split}",
            f"{counts['rows']:,} packed",
            *(f"{counts[name]:,}" for name in ("documents", "tokens", "targets")),
            f"{counts['utilisation']:.1%}",
        )
        for source, found in counts["sources"].items():
            names = ("rows", "documents", "tokens", "targets")
            table.add_row(f"  {source}", *(f"{found.get(name, 0):,}" for name in names), "")
    console.print(table)
    for split, counts in manifest["splits"].items():
        for source, reasons in counts["dropped"].items():
            for reason, count in sorted(reasons.items()):
                console.print(f"dropped from {split}, {source}: {count:,} ({reason})")
    for line in unread_lines(manifest):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"packed set: {path}", soft_wrap=True, highlight=False)
