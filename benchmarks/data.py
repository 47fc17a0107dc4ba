"""Packing against the bare tokenizer: how much of the time goes to anything but tokenizing.

``pack``: rows of a JSON-lines file to a packed set in one process, through the functions that the
tasks call; the baseline tokenizes the same conversations, rendered beforehand and held in memory.
``pack_ray``: the same rows through Ray Data, with the CPU time of every process of a Ray that has
been warmed up. ``memory``: largest process of that Ray, ten times the rows against one time.
"""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from a2d_ray.config import BenchmarkConfig, DataSection, ObjectiveSection
from a2d_ray.data.chat import ChatRenderer
from a2d_ray.data.packing.packed import ROWS_PER_PART
from a2d_ray.data.packing.planning import Index, IndexLimits, make_plan, read_reports, split_index
from a2d_ray.data.packing.statistics import Report
from a2d_ray.data.packing.tokenizing import tokenize_table
from a2d_ray.data.packing.writing import write_part
from a2d_ray.data.sources.embedded import embedded_rows
from a2d_ray.data.sources.mixture import parse_spec
from a2d_ray.data.sources.reading import read_unit, reading_units
from a2d_ray.data.sources.shards import resolve_source
from a2d_ray.models.sources import find_source, load_ar_tokenizer
from benchmarks.harness import Case, measure

MEDIAN_TOKENS = 300
MAX_LENGTH = 1024
TOKENS_PER_ROW = 4096
TOKENS_PER_WORD = 1.35
PAYLOAD_ROWS = 2048
_SAMPLE_S = 0.05


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """The cases of the suite."""
    cases = {"pack": _pack, "pack_ray": _pack_ray, "memory": _memory}
    with tempfile.TemporaryDirectory() as root:
        work = _Work(Path(root), config.seed, rows=400 if config.quick else 3000)
        for name, case in cases.items():
            if config.cases is None or name in config.cases:
                yield case(work, config)


@dataclass
class _Work:
    """Rows and a tokenizer: lengths log-normal with a median of 300 tokens."""

    root: Path
    seed: int
    rows: int

    @cached_property
    def model_path(self) -> str:
        """A directory with SmolLM2's tokenizer."""
        path = self.root / "model"
        load_ar_tokenizer(find_source("package:smollm2")).save_pretrained(path)
        (path / "config.json").write_text("{}")  # a model's directory has one
        return str(path)

    @cached_property
    def tokenizer(self) -> Any:
        from a2d_ray.models.tokenizers import load_tokenizer

        return load_tokenizer(self.model_path)

    def write(self, rows: int) -> Path:
        """A JSON-lines file of this number of conversations."""
        path = self.root / f"rows{rows}.jsonl"
        if not path.exists():
            lines = (json.dumps({"messages": m}) + "\n" for m in self.conversations(rows))
            path.write_text("".join(lines))
        return path

    def conversations(self, rows: int) -> list[list[dict[str, str]]]:
        """Stretches of a story as question and answer."""
        random = np.random.default_rng(self.seed)
        words = " ".join(row["text"] for row in embedded_rows("story", "train")).split()
        lengths = random.lognormal(np.log(MEDIAN_TOKENS), 1.0, rows) / TOKENS_PER_WORD
        starts = random.integers(0, len(words), rows)
        return [
            _conversation(words, int(start), int(np.clip(length, 8, 4000)))
            for start, length in zip(starts, lengths, strict=True)
        ]

    def sections(self, rows: int) -> tuple[DataSection, ObjectiveSection]:
        """Options of a BD3LM run with one view."""
        data = DataSection(
            spec=str(self.write(rows)),
            packed_path=str(self.root / "packed"),
            max_length=MAX_LENGTH,
            tokens_per_row=TOKENS_PER_ROW,
            test_fraction=0,
        )
        return data, ObjectiveSection(name="bd3lm", block_size=32)

    def pack_in_process(self, rows: int) -> dict[str, Any]:
        """Reads, tokenizes, packs and writes as the tasks do; returns the counts."""
        from a2d_ray.data.pipeline import make_recipe

        data, objective = self.sections(rows)
        recipe = make_recipe(data, objective, self.tokenizer)
        place = Path(tempfile.mkdtemp(dir=self.root))
        sources = [resolve_source(spec) for spec in parse_spec(data.spec)]
        tables = [
            tokenize_table(table, model_path=self.model_path, recipe=recipe, directory=place)
            for unit in reading_units(sources, data, {})
            for table in _batched(read_unit(unit))
        ]
        train, _, _ = split_index(Index.of(tables), IndexLimits())
        plan = make_plan(train, recipe.tokens_per_row, recipe.seed)
        for part in plan.parts(ROWS_PER_PART):
            columns = {name: part[name][0].as_py() for name in part.column_names}
            write_part(columns, documents=place, files=train.files, directory=place / "train")
        report = Report(read_reports(tables), ["rows"])
        shutil.rmtree(place)
        return report.split("train", plan, recipe.tokens_per_row, data.max_length)


def _pack(work: _Work, config: BenchmarkConfig) -> Case:
    counts = work.pack_in_process(work.rows)
    texts = _rendered(work)
    tokens = sum(len(ids) for ids in _tokenize(work.tokenizer, texts))
    timings = measure(
        {
            "ours": lambda: work.pack_in_process(work.rows),
            "baseline": lambda: _tokenize(work.tokenizer, texts),
            "floor": lambda: _encode_only(work.tokenizer, texts),
        },
        repeats=3 if config.quick else 5,
    )
    return Case(
        name="pack",
        ours=tokens / timings["ours"].cpu_s,
        baseline=tokens / timings["baseline"].cpu_s,
        baseline_floor=tokens / timings["floor"].cpu_s,
        unit="tokens/cpu_s",
        is_cost=False,
        facts={
            "rows": work.rows,
            "tokens": tokens,
            "utilisation": counts["utilisation"],
            "wall_s": round(timings["ours"].wall_s, 3),
            "baseline_wall_s": round(timings["baseline"].wall_s, 3),
        },
    )


def _pack_ray(work: _Work, config: BenchmarkConfig) -> Case:
    texts = _rendered(work)
    tokens = sum(len(ids) for ids in _tokenize(work.tokenizer, texts))
    baseline = measure({"baseline": lambda: _tokenize(work.tokenizer, texts)}, repeats=3)
    cold = _prepare(work, work.rows // 4)
    warm = _prepare(work, work.rows)
    return Case(
        name="pack_ray",
        ours=tokens / warm.cpu_s,
        baseline=tokens / baseline["baseline"].cpu_s,
        unit="tokens/cpu_s",
        is_cost=False,
        facts={
            "wall_s": round(warm.wall_s, 2),
            "cold_cpu_s": round(cold.cpu_s, 2),
            "cold_wall_s": round(cold.wall_s, 2),
            "cold_rows": work.rows // 4,
        },
    )


def _memory(work: _Work, config: BenchmarkConfig) -> Case:
    _prepare(work, work.rows // 4)
    small = _prepare(work, work.rows)
    large = _prepare(work, 10 * work.rows)
    return Case(
        name="memory",
        ours=large.peak_mib,
        baseline=small.peak_mib,
        unit="MiB of the largest process",
        facts={"rows": [work.rows, 10 * work.rows], "wall_s": round(large.wall_s, 2)},
    )


@dataclass(frozen=True)
class _Usage:
    """CPU seconds and wall seconds of all processes, and the largest one's private memory."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def _prepare(work: _Work, rows: int) -> _Usage:
    """Packs with Ray Data; the finished set is removed."""
    from a2d_ray.data.pipeline import prepare
    from a2d_ray.runs.cluster import start_ray

    data, objective = work.sections(rows)
    model_path = work.model_path
    before = _cpu_seconds()
    started = time.perf_counter()
    with _peak_memory() as peak:
        start_ray(os.cpu_count())
        packed = prepare(data, objective, model_path)
    wall = time.perf_counter() - started
    usage = _Usage(_cpu_seconds() - before, wall, peak())
    shutil.rmtree(packed.path)
    return usage


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_seconds() -> float:
    total = 0.0
    for process in _processes():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def _peak_memory() -> Iterator[Callable[[], float]]:
    """Samples the private memory (USS) of this process and its children."""
    largest = 0.0
    is_over = threading.Event()

    def sample() -> None:
        nonlocal largest
        while not is_over.wait(_SAMPLE_S):
            for process in _processes():
                try:
                    largest = max(largest, process.memory_full_info().uss / 2**20)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield lambda: largest
    is_over.set()
    thread.join()


def _batched(tables: Iterator[Any]) -> Iterator[Any]:
    """Tables of some thousand rows, as Ray Data's blocks would be."""
    import pyarrow as pa

    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= PAYLOAD_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _rendered(work: _Work) -> list[str]:
    renderer = ChatRenderer(work.tokenizer)
    return [
        "".join(piece.text for piece in renderer.render(messages))
        for messages in work.conversations(work.rows)
    ]


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _encode_only(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The library below transformers: no offsets, no masks."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _conversation(words: list[str], start: int, length: int) -> list[dict[str, str]]:
    stretch = [words[(start + i) % len(words)] for i in range(length)]
    cut = max(1, length // 3)
    return [
        {"role": "user", "content": " ".join(stretch[:cut])},
        {"role": "assistant", "content": " ".join(stretch[cut:])},
    ]
