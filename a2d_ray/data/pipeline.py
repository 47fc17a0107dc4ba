"""Ray Data: read, tokenize, pack, write; and read packed rows back for training.

    units ─read─▶ rows ─tokenize─▶ documents (files) + index ─plan─▶ packs ─write─▶ Parquet parts

Reading, tokenizing and writing are plain tasks; the plan is made here from the index. Everything
that decides the result is a function of hashes, so it does not depend on how many tasks run, or in
what blocks rows travel. Only this file of the package imports Ray.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
from ray.data import DataContext, Dataset

from a2d_ray.config import DataSection, ObjectiveSection, OptionError
from a2d_ray.data import roles, thoughts
from a2d_ray.data.chat import check_template_options, frame
from a2d_ray.data.hashing import code_hash
from a2d_ray.data.packing.building import DOCUMENTS, built_beside, disk_error, explain_change
from a2d_ray.data.packing.costs import Streams
from a2d_ray.data.packing.packed import (
    MANIFEST,
    ROWS_PER_GROUP,
    ROWS_PER_PART,
    PackedSet,
    read_positions,
    to_packed_rows,
)
from a2d_ray.data.packing.planning import (
    Index,
    IndexLimits,
    SplitPacks,
    make_plan,
    read_reports,
    split_index,
)
from a2d_ray.data.packing.statistics import Report
from a2d_ray.data.packing.summary import unread_lines
from a2d_ray.data.packing.tokenizing import Recipe, num_documents, tokenize_table
from a2d_ray.data.packing.writing import write_part
from a2d_ray.data.sources import adapters, files
from a2d_ray.data.sources.decontamination import evaluation_ngrams
from a2d_ray.data.sources.mixture import SPLITS, Split, parse_spec
from a2d_ray.data.sources.reading import Unit, read_unit, reading_units
from a2d_ray.data.sources.shards import Shape, Source, resolve_source
from a2d_ray.models.tokenizers import load_tokenizer, template_options
from a2d_ray.runs.cluster import start_ray
from a2d_ray.runs.storage import absolute_if_local, absolute_path
from a2d_ray.runs.task_errors import task_errors
from a2d_ray.terminal.progress import following

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PackedSet", "prepare", "to_packed_rows", "training_dataset"]

_log = logging.getLogger(__name__)

FORMAT_VERSION = 4  # raise it when the same documents give other packs; rows have `row_code`
BLOCK_BYTES = 4 * 2**20  # of rows that one task tokenizes
READER_CPUS = 0.5  # unlike the tokenizers' share, so that Ray Data keeps the two apart


def prepare(data: DataSection, objective: ObjectiveSection, model_path: str) -> PackedSet:
    """The packed set of a mixture: found by its fingerprint, or made with Ray Data.

    Starts Ray if it does not run yet.

    Args:
        data: mixture and packing options.
        objective: decides what a document costs and which answers share one.
        model_path: A2D or AR checkpoint whose tokenizer is used.

    Raises:
        ValueError: a source that cannot be read, too many malformed rows, nothing to learn from,
            a full disk.
    """
    tokenizer = load_tokenizer(absolute_if_local(model_path))
    check_template_options("data.template_options", data.template_options, tokenizer)
    sources = [resolve_source(spec) for spec in parse_spec(data.spec)]
    recipe = make_recipe(data, objective, tokenizer)
    _check(sources, data)
    options = _options(sources, data, recipe, tokenizer)
    fingerprint = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    target = Path(absolute_path(data.packed_path)) / fingerprint
    if (target / MANIFEST).is_file():
        _log.info("packed set %s is reused", target)
        return PackedSet.open(target)
    _log.info("packing into %s", target)
    if change := explain_change(options, target.parent):
        _log.info("the new set %s", change)
    started = time.perf_counter()
    start_ray()
    with built_beside(target) as directory, _disk_errors(target.parent), task_errors():
        job = _Job(sources, data, recipe, absolute_if_local(model_path), directory)
        manifest = {"fingerprint": fingerprint, "options": options, **job.run()}
        for line in unread_lines(manifest):
            _log.warning("%s", line)
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    _log.info("packed in %.1f s", time.perf_counter() - started)
    return PackedSet.open(target)


def training_dataset(
    packed: PackedSet, *, start_row: int, stop_row: int, rows_per_block: int, seed: int
) -> Dataset:
    """Training rows at the global positions start_row..stop_row-1, in order, across epochs.

    Position p is place p % N of epoch p // N, N the number of training rows; each epoch has its
    own permutation, a pure function of (fingerprint, seed, epoch). With
    ``streaming_split(W, equal=True)`` and ``iter_batches(batch_size=rows_per_block)``, step s
    over all W ranks consumes exactly the positions [s W B, (s + 1) W B) behind `start_row`.

    Args:
        packed: the packed set.
        start_row: first position, in rows over all ranks: what a restart skips.
        stop_row: position behind the last.
        rows_per_block: B, rows of one rank in one step.
        seed: of the order.

    Returns:
        A dataset with the columns of `packed.PACKED_SCHEMA` and ``position``; read it with
        ``batch_format="pyarrow"`` and `to_packed_rows`.

    Raises:
        ValueError: an empty range.
    """
    if not 0 <= start_row < stop_row:
        raise ValueError(f"no training rows in [{start_row}, {stop_row})")
    count = stop_row - start_row
    rows_per_task = max(1, ROWS_PER_GROUP // rows_per_block) * rows_per_block
    with _ordered():
        plan = ray.data.range(count, override_num_blocks=-(-count // rows_per_task))
        rows = plan.map_batches(
            partial(read_positions, packed=packed, start_row=start_row, seed=seed),
            batch_size=None,
            batch_format="pyarrow",
        )
        rows = rows.repartition(target_num_rows_per_block=rows_per_block, strict=True)
    rows.context.enable_progress_bars = False  # the run has one of its own
    return rows


class _Job:
    """One run of the pipeline."""

    def __init__(
        self,
        sources: Sequence[Source],
        data: DataSection,
        recipe: Recipe,
        model_path: str,
        directory: Path,
    ) -> None:
        self.sources = sources
        self.data = data
        self.recipe = recipe
        self.model_path = model_path
        self.directory = directory

    def run(self) -> dict[str, Any]:
        """Writes both splits; returns their counts, how languages were found, what is unread."""
        data = self.data
        tables = self._tokenize()
        report = Report(read_reports(tables), [source.spec.key for source in self.sources])
        report.check(data)
        limits = IndexLimits(
            deduplicate=data.deduplicate, max_rows=data.max_rows, max_tokens=data.max_tokens
        )
        train, test, dropped = split_index(Index.of(tables), limits)
        report.drop("train", dropped)
        plans: dict[Split, SplitPacks] = {
            split: make_plan(
                index, self.recipe.tokens_per_row, self.recipe.seed, is_packed=data.packing
            )
            for split, index in zip(SPLITS, (train, test), strict=True)
        }
        report.check_train(plans["train"], data)
        self._write(plans)
        counts: dict[str, Any] = {
            split: report.split(split, plan, self.recipe.tokens_per_row, data.max_length)
            for split, plan in plans.items()
        }
        stray = {source.spec.key: source.stray for source in self.sources}
        return {
            "splits": counts,
            "languages": report.languages(),
            "unread": report.unread(stray),
        }

    def _tokenize(self) -> list[pa.Table]:
        """The index of all documents, whose tokens are then in files."""
        shape = Shape.of(self.data)
        ngrams = evaluation_ngrams(self.data.decontaminate, self.data.decontaminate_ngram, shape)
        units = reading_units(list(self.sources), self.data, ngrams)
        if not units:
            return [pa.table({"report": pa.array([], pa.string())})]
        with _context():
            numbers = ray.data.range(len(units), override_num_blocks=len(units))
            rows = numbers.map_batches(
                partial(_read, units=units),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=READER_CPUS,
            )
            index = rows.map_batches(
                partial(
                    _tokenize,
                    model_path=self.model_path,
                    recipe=self.recipe,
                    directory=self.directory / DOCUMENTS,
                ),
                batch_size=None,
                batch_format="pyarrow",
            )
        tables = (table for table in _batches(index) if table.num_rows)
        return list(following(tables, "tokenize", None, "document", num_documents))

    def _write(self, plans: Mapping[Split, SplitPacks]) -> None:
        """Writes the parts of both splits."""
        parts = [
            part.append_column("split", pa.array([split]))
            for split, plan in plans.items()
            for part in plan.parts(ROWS_PER_PART)
        ]
        with _context():
            written = ray.data.from_arrow(parts).map_batches(
                partial(
                    _write,
                    documents=self.directory / DOCUMENTS,
                    files=plans["train"].index.files,
                    directory=self.directory,
                ),
                batch_size=None,
                batch_format="pyarrow",
            )
        batches = following(_batches(written), "write", len(parts), "part")
        rows = sum(sum(batch["rows"].to_pylist()) for batch in batches)
        assert rows == sum(plan.num_packs for plan in plans.values()), rows


def _read(batch: pa.Table, units: Sequence[Unit]) -> Iterator[pa.Table]:
    for number in batch["id"].to_pylist():
        yield from read_unit(units[number])


def _tokenize(rows: pa.Table, **options: Any) -> pa.Table:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task is one thread
    return tokenize_table(rows, **options)


def _write(parts: pa.Table, directory: Path, **options: Any) -> pa.Table:
    rows = []
    for number in range(parts.num_rows):
        plan = {name: parts[name][number].as_py() for name in parts.column_names}
        rows.append(write_part(plan, directory=directory / plan["split"], **options))
    return pa.table({"rows": pa.array(rows, pa.int64())})


def _batches(dataset: Dataset) -> Iterator[pa.Table]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        yield batch


def make_recipe(
    data: DataSection,
    objective: ObjectiveSection,
    tokenizer: "PreTrainedTokenizerBase",
) -> Recipe:
    """How the rows of a configuration become packs.

    Raises:
        ValueError: an option that the tokenizer cannot serve.
    """
    if data.insert_eos and tokenizer.eos_token_id is None:
        raise OptionError(
            "data.insert_eos",
            True,
            "needs an EOS token, which the tokenizer lacks",
            "set it to false",
        )
    streams = Streams.of(data, objective)
    return Recipe(
        cutting=streams.cutting(data),
        streams=streams,
        text_length=(
            streams.longest_text(data.max_length, data.tokens_per_row)
            if data.packing
            else data.max_length
        ),
        tokens_per_row=data.tokens_per_row,
        insert_eos=data.insert_eos,
        seed=data.seed,
        template_options={**template_options(tokenizer), **data.template_options},
    )


def _check(sources: list[Source], data: DataSection) -> None:
    """Refuses rows of unknown shape before any task runs."""
    for source in sources:
        Shape.of(data).find(source.columns, source.peeked)


def _options(
    sources: list[Source],
    data: DataSection,
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any]:
    """Everything that decides the packs, for the fingerprint and the manifest."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    text = f"{words}{tokenizer.chat_template}{tokenizer.eos_token}"
    wanted = ("packing", "text_field", "test_fraction", "deduplicate", "max_rows", "max_tokens")
    evaluation = [
        resolve_source(spec, is_evaluation=True)
        for text in data.decontaminate
        for spec in parse_spec(text)
    ]
    return {
        "format": FORMAT_VERSION,
        "sources": [{**asdict(source.spec), "identity": source.identity} for source in sources],
        "recipe": asdict(recipe),
        **{name: getattr(data, name) for name in wanted},
        "row_code": code_hash(*(str(m.__file__) for m in (adapters, files, roles, thoughts))),
        "adapter": adapters.adapter_source(data.adapter),
        "decontaminate": [source.identity for source in evaluation],
        "decontaminate_ngram": data.decontaminate_ngram if evaluation else None,
        "tokenizer": hashlib.sha256(text.encode()).hexdigest(),
        "frame": frame(tokenizer, recipe.template_options),
    }


@contextlib.contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    """A full disk says what to do."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, place) from error.__cause__


@contextlib.contextmanager
def _context() -> Iterator[None]:
    """Datasets made in here have small blocks."""
    context = DataContext.get_current()
    before = context.target_max_block_size
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False  # ours count documents and parts
    try:
        yield
    finally:
        context.target_max_block_size = before


@contextlib.contextmanager
def _ordered() -> Iterator[None]:
    """Datasets made in here keep the order of their blocks."""
    context = DataContext.get_current()
    before = context.execution_options.preserve_order
    context.execution_options.preserve_order = True
    try:
        yield
    finally:
        context.execution_options.preserve_order = before
