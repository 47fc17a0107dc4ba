"""Counts of a packed set: merged over its reports and plans, checked against the limits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from a2d_ray.config import DataSection
from a2d_ray.data.packing.planning import Index, SplitPacks
from a2d_ray.data.packing.tokenizing import MAX_OFFENDERS
from a2d_ray.data.sources.mixture import SpecError, Split

HISTOGRAM_BINS = 32


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
        return {name: dict(sorted(tally.items())) for name, tally in self.tallies.items() if tally}

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


def _histogram(index: Index, max_length: int) -> dict[str, list[int]]:
    """Documents by their number of tokens: ``counts[i]`` have edges[i] .. edges[i+1]-1."""
    edges = np.unique(np.linspace(1, max_length + 1, HISTOGRAM_BINS + 1).astype(np.int64))
    counts, _ = np.histogram(index["tokens"], edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
