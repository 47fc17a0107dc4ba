"""Where rows come from: a `SourceSpec` -> shards of files -> rows -> `Example`. No Ray here.

A shard is the unit that one task reads. Rows are numbered within their shard, so the order and
the identity of rows do not depend on how many tasks read them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from a2d_ray.config import DataSection
from a2d_ray.data.hashing import code_hash
from a2d_ray.data.sources.adapters import (
    Adapter,
    Example,
    MalformedRowError,
    find_adapter,
    matches_language,
)
from a2d_ray.data.sources.files import FORMATS, NumberedRow, file_format, read_file
from a2d_ray.data.sources.mixture import SPLITS, SourceSpec, SpecError, Split
from a2d_ray.data.sources.storage import COMPRESSIONS, DataFile, list_files
from a2d_ray.data.sources.watched import Watched

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "train_sft", "training"),
    "test": ("test", "test_sft", "validation", "valid", "eval", "dev"),
}
_PEEK_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one task reads: a file, or an embedded set (`path` is then ``embedded/NAME``)."""

    path: str
    format: str
    ordinal: int
    split: Split
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How rows become examples: ``data.text_field`` and ``data.adapter``."""

    text_field: str | None = None
    adapter: str | None = None

    @classmethod
    def of(cls, data: DataSection) -> "Shape":
        """What the options ask for."""
        return cls(text_field=data.text_field, adapter=data.adapter)

    def find(self, columns: Sequence[str], source: str) -> Adapter:
        """The adapter for rows with these columns; ValueError if their shape is unknown."""
        return find_adapter(columns, source, text_field=self.text_field, custom=self.adapter)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A resolved `SourceSpec`.

    Attributes:
        spec: what was asked for.
        train, test: shards by split; without a test split of its own, the test rows are cut off
            the training rows by a seeded hash.
        columns: column names of its first readable row.
        peeked: the file of that row.
        stray: files of the source that hold no rows and are not read.
        identity: changes when the rows change (names, sizes, times, versions).
    """

    spec: SourceSpec
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    columns: tuple[str, ...]
    identity: str
    peeked: str
    stray: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReadRow:
    """One row of a shard: an example, or the reason why it is dropped.

    Attributes:
        number: line or row within the shard, from 1.
        language_by: which criterion found its language; '' if none was asked for.
        is_other_language: it is of another language than the one asked for.
        unread: its columns and keys that hold text and were not read.
        columns: the row as it is stored.
    """

    number: int
    example: Example | None
    reason: str | None = None
    language_by: str = ""
    is_other_language: bool = False
    unread: frozenset[str] = frozenset()
    columns: Mapping[str, Any] = field(default_factory=dict)


def resolve_source(spec: SourceSpec, *, is_evaluation: bool = False) -> Source:
    """Finds the files of a source and looks at its first rows.

    Args:
        spec: what is asked for.
        is_evaluation: it is not trained on, so it may do without a train split.

    Raises:
        ValueError: nothing there, no data files, a split that does not exist, no readable row.
    """
    if spec.name.startswith("embedded/"):
        shards = {split: _embedded_shards(spec, split) for split in SPLITS}
        columns: tuple[str, ...] = ("text",) if spec.name == "embedded/story" else ("messages",)
        identity = _embedded_identity(spec.name)
        peeked = spec.name
        stray: tuple[str, ...] = ()
    else:
        files, stray = _data_files(spec)
        shards = {split: _file_shards(spec, files, split) for split in SPLITS}
        if not shards["train"] and not (is_evaluation and shards["test"]):
            names = sorted({_split_of(file.name) for file in files})
            raise SpecError(
                spec.name,
                f"has no train split, only {', '.join(names)}",
                "name one with [train_split:NAME]",
            )
        peeked, columns = _peek_columns(spec, shards["train"] or shards["test"])
        identity = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return Source(
        spec=spec,
        train=shards["train"],
        test=shards["test"],
        columns=columns,
        identity=identity,
        peeked=peeked,
        stray=stray,
    )


def read_shard(shard: Shard, spec: SourceSpec, shape: Shape) -> Iterator[ReadRow]:
    """Rows of a shard in order.

    Args:
        shard: from `resolve_source`.
        spec: its source; with ``lang``, rows say whether they are of that language.
        shape: how rows become examples; the columns of the shard's first good row decide.

    Raises:
        ValueError: rows of unknown shape, a damaged file.
    """
    adapter: Adapter | None = None
    for number, row in _raw_rows(shard):
        try:
            if isinstance(row, MalformedRowError):
                raise row
            adapter = adapter or shape.find(tuple(row), shard.path)
            watched = Watched(row)
            example = adapter(watched)
        except MalformedRowError as error:
            yield ReadRow(number=number, example=None, reason=str(error))
            continue
        is_wanted, criterion = True, ""
        if spec.lang is not None:
            is_wanted, criterion = matches_language(watched, example, spec.lang)
        yield ReadRow(
            number=number,
            example=example,
            language_by=criterion,
            is_other_language=not is_wanted,
            unread=frozenset(watched.unread()),
            columns=row,
        )


def _embedded_shards(spec: SourceSpec, split: Split) -> tuple[Shard, ...]:
    limit = spec.train if split == "train" else spec.test
    path = spec.name
    return (Shard(path=path, format="embedded", ordinal=0, split=split, limit=limit),)


def _data_files(spec: SourceSpec) -> tuple[list[DataFile], tuple[str, ...]]:
    """The data files of a source, sorted by name, and the names of files that are not read."""
    # Hugging Face caches and the indices of save_to_disk lie beside the data.
    there = [
        file
        for file in sorted(list_files(spec.name), key=lambda file: file.name)
        if not file.name.startswith(".")
        and "cache-" not in file.name
        and PurePosixPath(file.name).name not in _METADATA_FILES
    ]
    formats = {file.name: file_format(file.path) for file in there}
    if set(formats.values()) - {None, "text"}:  # a text beside rows is a note about them
        formats = {name: None if kind == "text" else kind for name, kind in formats.items()}
    files = _only_config(spec, [file for file in there if formats[file.name]])
    if not files:
        raise SpecError(
            spec.name,
            "holds no data files",
            f"{', '.join(FORMATS)} are read, also as {', '.join(COMPRESSIONS)}",
        )
    return files, tuple(name for name, kind in formats.items() if kind is None)


_METADATA_FILES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")


def _only_config(spec: SourceSpec, files: list[DataFile]) -> list[DataFile]:
    """Files of the configuration asked for; of ``all``, where there is one; else every file."""
    wanted = spec.config or "all"
    chosen = [
        file
        for file in files
        if wanted in (*PurePosixPath(file.name).parts[:-1], file.name.split(".")[0])
    ]
    if not chosen and spec.config is None:
        return files
    if not chosen:
        names = sorted({_config_of(file.name) for file in files})
        raise SpecError(
            spec.name, f"has no configuration {spec.config!r}", f"it holds {', '.join(names)}"
        )
    return chosen


def _config_of(name: str) -> str:
    """The folder that a configuration would be: ``data/all/train-0.parquet`` -> ``all``."""
    folders = PurePosixPath(name).parts[:-1]
    return folders[-1] if folders else name.split(".")[0]


def _file_shards(spec: SourceSpec, files: Sequence[DataFile], split: Split) -> tuple[Shard, ...]:
    wanted = spec.train_split if split == "train" else spec.test_split
    by_split: dict[str, list[str]] = {}
    for path, name, _ in files:
        by_split.setdefault(_split_of(name), []).append(path)
    if wanted is not None and wanted not in by_split:
        raise SpecError(
            spec.name, f"has no split {wanted!r}", f"it has {', '.join(sorted(by_split))}"
        )
    names = [wanted] if wanted else [n for n in _SPLIT_NAMES[split] if n in by_split][:1]
    chosen = by_split[names[0]] if names else []
    return tuple(
        Shard(path=path, format=file_format(path) or "", ordinal=i, split=split)
        for i, path in enumerate(chosen)
    )


def _split_of(name: str) -> str:
    """Split of a file by its folder or name (``test/0.parquet``, ``data/test-00000-of-1``)."""
    known = [split for names in _SPLIT_NAMES.values() for split in names]
    path = PurePosixPath(name)
    stem = path.name.split(".")[0]
    for part in (stem, *reversed(path.parts[:-1])):
        for split in sorted(known, key=len, reverse=True):
            rest = part.removeprefix(split)
            if rest != part and (not rest or rest[0] in "-."):
                return split
    is_named = "-of-" in stem and not stem.startswith("data-")
    return stem.split("-")[0] if is_named else "train"


def _peek_columns(spec: SourceSpec, shards: Sequence[Shard]) -> tuple[str, tuple[str, ...]]:
    """The first file with a readable row, and that row's columns."""
    found: list[str] = []
    for shard in shards:
        for number, row in islice(_raw_rows(shard), _PEEK_ROWS):
            if not isinstance(row, MalformedRowError):
                return shard.path, tuple(row)
            found.append(f"{shard.path}:{number}: {row}")
    first = found or [f"{shard.path} is empty" for shard in shards]
    raise SpecError(spec.name, "has no readable rows", first[0])


def _raw_rows(shard: Shard) -> Iterator[NumberedRow]:
    if shard.format == "embedded":
        from a2d_ray.data.sources.embedded import embedded_rows

        name = shard.path.removeprefix("embedded/")
        yield from enumerate(embedded_rows(name, shard.split, shard.limit), start=1)
        return
    yield from read_file(shard.path, shard.format)


def _embedded_identity(name: str) -> str:
    """Changes with the package that the rows come from and the code that words them."""
    package = "chitchat-dataset" if name == "embedded/chat" else "reasoning-gym"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise SpecError(name, f"needs {package}", "pip install 'a2d-ray[quickstart]'") from None
    return f"{package} {found} {code_hash(Path(__file__).with_name('embedded.py'))}"
