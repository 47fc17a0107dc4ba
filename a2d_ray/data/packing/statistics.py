"""Counts of a packed set: merged over its reports and plans, checked against the limits."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from a2d_ray.config import DataSection
from a2d_ray.data.packing.planning import Index, SplitPacks
from a2d_ray.data.packing.tokenizing import MAX_OFFENDERS
from a2d_ray.data.sources.mixture import SpecError, Split
from a2d_ray.data.sources.reading import NOT_READ

HISTOGRAM_BINS = 32
_NAMED_FILES = 5  # of one ending; more are counted


class Report:
    """What became of the rows of all sources, over all tasks."""

    def __init__(self, reports: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        """Args:
        reports: of `tokenizing.tokenize_rows`.
        names: of the sources, by their number.
        """
        self.names = names
        self.rows: Counter[str] = sum((Counter(r["rows"]) for r in reports), Counter())
        self.dropped: Counter[str] = sum((Counter(r["dropped"]) for r in reports), Counter())
        offenders = sorted(entry for report in reports for entry in report["offenders"])
        self.offenders = [entry[3:] for entry in offenders[:MAX_OFFENDERS]]
        self.tallies: dict[str, Counter[str]] = {}
        for source, tally in (entry for report in reports for entry in report["tallies"]):
            self.tallies.setdefault(names[source], Counter()).update(tally)

    def count(self, what: str) -> int:
        """``rows`` or ``malformed`` rows over all splits and sources."""
        return sum(n for key, n in self.rows.items() if key.endswith(f"|{what}"))

    def drop(self, split: Split, reasons: Mapping[tuple[int, str], int]) -> None:
        """Adds rows that the plan left out, by (source, reason)."""
        for (source, reason), count in reasons.items():
            self.dropped[f"{split}|{source}|{reason}"] += count

    def languages(self) -> dict[str, dict[str, int]]:
        """Per source with ``lang``: rows by the criterion that decided, and of other languages."""
        return self._tallied(lambda key: None if key.startswith(NOT_READ) else key)

    def unread(self, stray: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
        """Per source, what held text and was not read, and in how many rows.

        Args:
            stray: files that were not read, by source.
        """
        found = self._tallied(
            lambda k: k.removeprefix(NOT_READ) if k.startswith(NOT_READ) else None
        )
        for name, files in stray.items():
            for file, count in _grouped(files).items():
                found.setdefault(name, {})[f"file {file}"] = count
        return found

    def _tallied(self, label: Callable[[str], str | None]) -> dict[str, dict[str, int]]:
        """The tallies, without the entries that have no label."""
        found = {
            name: {text: n for key, n in sorted(tally.items()) if (text := label(key)) is not None}
            for name, tally in self.tallies.items()
        }
        return {name: entries for name, entries in found.items() if entries}

    def check(self, data: DataSection) -> None:
        """Refuses too many malformed rows, or none at all.

        Raises:
            SpecError: says the share, the limit and the first offenders.
        """
        rows = self.count("rows")
        malformed = self.count("malformed")
        if rows == 0:
            raise SpecError(data.spec, f"has no rows{self._languages()}", "choose another")
        if malformed > data.max_bad_fraction * rows:
            listed = "\n".join(f"  {where}: {reason}" for where, reason in self.offenders)
            raise SpecError(
                data.spec,
                f"has {malformed} malformed rows of {rows}, more than "
                f"data.max_bad_fraction={data.max_bad_fraction}",
                f"mend them, or raise that. The first:\n{listed}",
            )

    def check_train(self, plan: SplitPacks, data: DataSection) -> None:
        """Refuses a training split that holds nothing to learn; says why rows were dropped."""
        if plan.num_packs:
            return
        rows = sum(n for key, n in self.rows.items() if key.startswith("train|"))
        reasons: Counter[str] = Counter()
        for key, count in self.dropped.items():
            split, _, reason = key.split("|", 2)
            reasons[reason] += count * (split == "train")
        listed = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise SpecError(
            data.spec, f"has no target in {rows} training rows", listed or "there are no rows"
        )

    def split(
        self, split: Split, plan: SplitPacks, capacity: int, max_length: int
    ) -> dict[str, Any]:
        """The counts of a split.

        Args:
            split: which.
            plan: its packs.
            capacity: tokens that a packed row can hold over all streams.
            max_length: longest document in tokens, of the histogram.

        Returns:
            ``rows`` (packed), ``documents``, ``tokens``, ``targets``, ``utilisation``,
            ``lengths`` (a histogram of documents' tokens), and by source ``sources`` (rows,
            malformed, documents, tokens, targets) and ``dropped`` (by reason).
        """
        index = plan.index
        dropped: dict[str, dict[str, int]] = {}
        for key, count in sorted(self.dropped.items()):
            of, source, reason = key.split("|", 2)
            if of == split and count:
                dropped.setdefault(self.names[int(source)], {})[reason] = count
        cost = int(index["cost"].sum())
        return {
            "rows": plan.num_packs,
            "documents": int(index["cost"].size),
            "tokens": int(index["tokens"].sum()),
            "targets": int(index["targets"].sum()),
            "utilisation": round(cost / (capacity * plan.num_packs), 4) if plan.num_packs else 0.0,
            "lengths": _histogram(index, max_length),
            "sources": {
                name: self._source(split, number, index) for number, name in enumerate(self.names)
            },
            "dropped": dropped,
        }

    def _source(self, split: Split, number: int, index: Index) -> dict[str, int]:
        is_here = index["source"] == number
        return {
            **{what: self.rows[f"{split}|{number}|{what}"] for what in ("rows", "malformed")},
            "documents": int(is_here.sum()),
            "tokens": int(index["tokens"][is_here].sum()),
            "targets": int(index["targets"][is_here].sum()),
        }

    def _languages(self) -> str:
        found = [f"{name}: {tally}" for name, tally in self.languages().items()]
        return f" ({'; '.join(found)})" if found else ""


def _grouped(files: Sequence[str]) -> dict[str, int]:
    """Names of files, or, where many end alike, their ending and how many there are."""
    endings = Counter(PurePosixPath(file).suffix for file in files)
    labels = (
        file if endings[end := PurePosixPath(file).suffix] <= _NAMED_FILES else f"*{end}"
        for file in files
    )
    return dict(Counter(labels))


def _histogram(index: Index, max_length: int) -> dict[str, list[int]]:
    """Documents by their number of tokens: ``counts[i]`` have edges[i] .. edges[i+1]-1."""
    edges = np.unique(np.linspace(1, max_length + 1, HISTOGRAM_BINS + 1).astype(np.int64))
    counts, _ = np.histogram(index["tokens"], edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
