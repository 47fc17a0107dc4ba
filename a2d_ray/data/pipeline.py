"""Ray Data: read, tokenize, pack, write; and read packed rows back for training.

    shards ─read─▶ rows ─tokenize─▶ documents ─pack windows─▶ packs ─sort by random key─▶ Parquet

Every step is a plain task over blocks of a fixed number of rows in a fixed order, so the result
does not depend on how many tasks run at a time. Only this file of the package imports Ray.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import DataContext, Dataset
from transformers import PreTrainedTokenizerBase

from a2d_ray.config import DataSection, ObjectiveSection
from a2d_ray.data.chat import ChatRenderer
from a2d_ray.data.documents import Cutting
from a2d_ray.data.mixture import parse_spec
from a2d_ray.data.packed import (
    MANIFEST,
    ROWS_PER_GROUP,
    ROWS_PER_PART,
    PackedSet,
    read_positions,
    to_packed_rows,
    write_parts,
)
from a2d_ray.data.packing import STATS_KEY, WINDOW_DOCUMENTS, pack_window
from a2d_ray.data.reading import Selection, read_rows
from a2d_ray.data.sources import SPLITS, Source, Split, resolve
from a2d_ray.data.statistics import check_counts, merge_stats
from a2d_ray.data.tokenizing import Recipe, tokenize_table
from a2d_ray.diffusion.layout import LayoutSpec
from a2d_ray.models.tokenizers import load_tokenizer

__all__ = ["PackedSet", "prepare", "to_packed_rows", "training_dataset"]

log = logging.getLogger(__name__)

FORMAT_VERSION = 2  # raise it when the same options give other packs
TOKENIZE_ROWS = 512


def prepare(data: DataSection, objective: ObjectiveSection, model_path: str) -> PackedSet:
    """The packed set of a mixture: found by its fingerprint, or made with Ray Data.

    Starts Ray if it does not run yet.

    Args:
        data: mixture and packing options.
        objective: decides what a document costs and which answers share one.
        model_path: A2D or AR checkpoint whose tokenizer is used.

    Raises:
        ValueError: a source that cannot be read, too many malformed rows, nothing to learn from.
    """
    tokenizer = load_tokenizer(_absolute(model_path))
    sources = [resolve(spec) for spec in parse_spec(data.spec)]
    recipe = _recipe(data, objective, tokenizer)
    _check(sources, data, tokenizer)
    options = _options(sources, data, recipe, tokenizer)
    fingerprint = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    target = Path(data.packed_path).expanduser().absolute() / fingerprint
    if (target / MANIFEST).is_file():
        log.info("packed set %s is reused", target)
        return PackedSet.open(target)
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS") or "local", include_dashboard=False)
    log.info("packing into %s", target)
    with _written_beside(target) as directory:
        started = time.perf_counter()
        job = _Job(sources, data, recipe, _absolute(model_path))
        splits = {}
        for split in SPLITS:
            splits[split] = job.write(split, directory / split)
            check_counts(splits["train"], data)  # before the next split is read
        manifest = {"fingerprint": fingerprint, "splits": splits, "options": options}
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        log.info("packed in %.1f s", time.perf_counter() - started)
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
    rows.context.enable_progress_bars = False  # the run has a bar of its own
    return rows


class _Job:
    """One run of the pipeline: everything that its tasks need to know."""

    def __init__(
        self, sources: list[Source], data: DataSection, recipe: Recipe, model_path: str
    ) -> None:
        self.sources = sources
        self.data = data
        self.recipe = recipe
        self.model_path = model_path

    def write(self, split: Split, directory: Path) -> dict[str, Any]:
        """Packs a split into `directory`; returns its counts."""
        stats: list[dict[str, Any]] = []
        with _ordered():
            packs = self._packs(split)
        rows = 0
        if packs is not None:
            rows = write_parts(_full_batches(packs, stats), directory)
        names = [source.spec.key for source in self.sources]
        return merge_stats(stats, names, rows, self.recipe.tokens_per_row)

    def _packs(self, split: Split) -> Dataset | None:
        parts = [
            rows
            for number in range(len(self.sources))
            if (rows := self._rows(number, split)) is not None
        ]
        if not parts:
            return None
        rows = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
        documents = rows.repartition(
            target_num_rows_per_block=TOKENIZE_ROWS, strict=True
        ).map_batches(
            partial(tokenize_table, model_path=self.model_path, recipe=self.recipe),
            batch_size=None,
            batch_format="pyarrow",
        )
        windows = documents.repartition(target_num_rows_per_block=WINDOW_DOCUMENTS, strict=True)
        packs = windows.map_batches(
            partial(
                pack_window,
                capacity=self.recipe.tokens_per_row,
                seed=self.recipe.seed,
                is_packed=self.data.packing,
            ),
            batch_size=None,
            batch_format="pyarrow",
        )
        return packs.sort("key")

    def _rows(self, number: int, split: Split) -> Dataset | None:
        source = self.sources[number]
        selection = Selection.of(source, number, split, self.data, self.recipe.seed)
        if selection is None:
            return None
        shards = [{"shard": i} for i in range(len(selection.shards))]
        items = ray.data.from_items(shards, override_num_blocks=len(shards))
        rows = items.map_batches(partial(read_rows, selection=selection), batch_size=1)
        return rows if selection.limit is None else rows.limit(selection.limit)


def _full_batches(packs: Dataset, stats: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """Batches of `ROWS_PER_PART` packs; the counts, which come first, go to `stats`."""
    left: pa.Table | None = None
    for batch in packs.iter_batches(batch_size=ROWS_PER_PART, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        is_stats = pc.equal(batch["key"], STATS_KEY)
        stats += [json.loads(text) for text in batch.filter(is_stats)["stats"].to_pylist()]
        table = batch.filter(pc.invert(is_stats))
        left = table if left is None else pa.concat_tables([left, table])
        while left.num_rows >= ROWS_PER_PART:
            yield left.slice(0, ROWS_PER_PART)
            left = left.slice(ROWS_PER_PART)
    if left is not None and left.num_rows:
        yield left


def _recipe(
    data: DataSection,
    objective: ObjectiveSection,
    tokenizer: PreTrainedTokenizerBase,
) -> Recipe:
    if data.insert_eos and tokenizer.eos_token_id is None:
        raise ValueError("data.insert_eos: the tokenizer has no EOS token; set it to false")
    layout = LayoutSpec(
        objective=objective.name,
        block_size=objective.block_size,
        block_grid=objective.block_grid,
        views=objective.views,
        right_shift=objective.right_shift_logits,
        eos_id=tokenizer.eos_token_id or 0,
    )
    return Recipe(
        cutting=Cutting.of(data, objective),
        layout=layout,
        eos_tail=data.eos_tail if objective.name == "mdlm" else 0,
        tokens_per_row=data.tokens_per_row,
        insert_eos=data.insert_eos,
        seed=data.seed,
    )


def _check(sources: list[Source], data: DataSection, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses, before any task runs, rows of unknown shape and a template that cannot be used."""
    for source in sources:
        source.adapter(data.text_field)
    probe = [{"role": role, "content": role} for role in ("user", "assistant")]
    ChatRenderer(tokenizer).render(probe)


def _options(
    sources: list[Source],
    data: DataSection,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Everything that decides the packs, for the fingerprint and the manifest."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    text = f"{words}{tokenizer.chat_template}{tokenizer.eos_token}"
    return {
        "format": FORMAT_VERSION,
        "sources": [{**asdict(source.spec), "identity": source.identity} for source in sources],
        "recipe": asdict(recipe),
        "text_field": data.text_field,
        "packing": data.packing,
        "test_fraction": data.test_fraction,
        "tokenizer": hashlib.sha256(text.encode()).hexdigest(),
    }


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


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `target` when all went well."""
    directory = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"data.packed_path: cannot write to {target.parent}: {error}") from error
    try:
        yield directory
        with contextlib.suppress(FileExistsError, OSError):  # another run was faster
            os.rename(directory, target)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _absolute(path: str) -> str:
    """Tasks run in another working directory."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path
