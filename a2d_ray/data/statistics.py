"""Counts of a packed split: merged over its windows, checked against the limits."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from a2d_ray.config import DataSection
from a2d_ray.data.packing import MAX_OFFENDERS


def merge_stats(
    windows: Sequence[dict[str, Any]], names: Sequence[str], num_packs: int, capacity: int
) -> dict[str, Any]:
    """The counts of a split.

    Args:
        windows: from `packing.pack_window`.
        names: of the sources, by their number.
        num_packs: packed rows written.
        capacity: tokens that a packed row can hold over all streams.

    Returns:
        ``rows`` (packed), ``documents``, ``tokens``, ``targets``, ``utilisation``, and by source
        ``sources`` (rows, malformed, documents, tokens, targets) and ``dropped`` (by reason);
        ``offenders``: the first malformed rows.
    """
    sources: dict[str, Counter[str]] = {name: Counter() for name in names}
    dropped: dict[str, Counter[str]] = {}
    offenders: list[list[str]] = []
    for window in windows:
        for number, counts in window["sources"].items():
            sources[names[int(number)]].update(counts)
        for number, reasons in window["dropped"].items():
            dropped.setdefault(names[int(number)], Counter()).update(reasons)
        offenders += window["offenders"]
    total: Counter[str] = sum(sources.values(), Counter())
    cost = sum(window["cost"] for window in windows)
    return {
        "rows": num_packs,
        "documents": total["documents"],
        "tokens": total["tokens"],
        "targets": total["targets"],
        "utilisation": round(cost / (capacity * num_packs), 4) if num_packs else 0.0,
        "sources": {name: dict(counts) for name, counts in sources.items()},
        "dropped": {name: dict(reasons) for name, reasons in dropped.items()},
        "offenders": sorted(offenders)[:MAX_OFFENDERS],
    }


def check_counts(split: dict[str, Any], data: DataSection) -> None:
    """Refuses a training split with too many malformed rows, or nothing to learn from.

    Raises:
        ValueError: says the share, the limit and the first offenders; or why rows were dropped.
    """
    rows = sum(counts.get("rows", 0) for counts in split["sources"].values())
    malformed = sum(counts.get("malformed", 0) for counts in split["sources"].values())
    if rows == 0:
        raise ValueError(f"data.spec: {data.spec!r} has no training rows")
    if malformed > data.max_bad_fraction * rows:
        listed = "\n".join(f"  {where}: {reason}" for where, reason in split["offenders"])
        raise ValueError(
            f"data.spec: {malformed} of {rows} rows are malformed, more than "
            f"data.max_bad_fraction ({data.max_bad_fraction}). The first:\n{listed}"
        )
    if split["rows"] == 0:
        reasons: Counter[str] = sum(map(Counter, split["dropped"].values()), Counter())
        listed = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise ValueError(f"data.spec: none of {rows} rows holds a target ({listed})")
