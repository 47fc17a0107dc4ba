"""Where rows come from: a `SourceSpec` -> shards of files -> rows -> `Example`. No Ray here.

A shard is the unit that one task reads. Rows are numbered within their shard, so the order and
the identity of rows do not depend on how many tasks read them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from a2d_ray.data.adapters import Adapter, Example, MalformedRowError, detect_adapter, has_language
from a2d_ray.data.files import FORMATS, file_format, read_file
from a2d_ray.data.mixture import SourceSpec, is_hub_offline, local_path

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
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
class Source:
    """A resolved `SourceSpec`.

    Attributes:
        spec: what was asked for.
        shards: by split; without a test split of its own, the test rows are cut off the training
            rows by a seeded hash (`has_test_split` is then False).
        columns: column names of its first readable row.
        identity: changes when the rows change (names, sizes, times, versions).
    """

    spec: SourceSpec
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    columns: tuple[str, ...]
    identity: str

    @property
    def has_test_split(self) -> bool:
        return bool(self.test)

    def adapter(self, text_field: str | None) -> Adapter:
        """The adapter for its rows; ValueError if their shape is unknown."""
        return detect_adapter(self.columns, text_field, self.spec.name)


@dataclass(frozen=True, kw_only=True)
class ReadRow:
    """One row of a shard: an example, or the reason why it is dropped."""

    where: str
    example: Example | None
    reason: str | None = None


def resolve(spec: SourceSpec) -> Source:
    """Finds the files of a source and looks at its first rows.

    Raises:
        ValueError: nothing there, no data files, a split that does not exist, no readable row.
    """
    if spec.name.startswith("embedded/"):
        shards = {split: _embedded_shards(spec, split) for split in SPLITS}
        columns: tuple[str, ...] = ("messages",)
        identity = _embedded_identity(spec.name)
    else:
        files = _list_files(spec)
        shards = {split: _file_shards(spec, files, split) for split in SPLITS}
        columns = _peek_columns(spec, shards["train"])
        identity = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return Source(
        spec=spec, train=shards["train"], test=shards["test"], columns=columns, identity=identity
    )


def read_shard(shard: Shard, adapter: Adapter, lang: str | None) -> Iterator[ReadRow]:
    """Rows of a shard in order; rows of other languages are left out.

    Args:
        shard: from `resolve`.
        adapter: from `Source.adapter`.
        lang: keep rows of this programming language only; None: all.
    """
    for number, row in enumerate(_raw_rows(shard), start=1):
        where = f"{shard.path}:{number}"
        try:
            if isinstance(row, MalformedRowError):
                raise row
            example = adapter(row)
        except MalformedRowError as error:
            yield ReadRow(where=where, example=None, reason=str(error))
            continue
        if lang is None or has_language(row, example, lang):
            yield ReadRow(where=where, example=example)


def _embedded_shards(spec: SourceSpec, split: Split) -> tuple[Shard, ...]:
    limit = spec.train if split == "train" else spec.test
    path = spec.name
    return (Shard(path=path, format="embedded", ordinal=0, split=split, limit=limit),)


def _list_files(spec: SourceSpec) -> list[tuple[str, str, str]]:
    """(path, name within the source, identity) of every data file, sorted by name."""
    path = local_path(spec.name)
    if path is None:
        files = _hub_files(spec.name)
    elif path.is_file():
        files = [(str(path), path.name, _stamp(path))]
    else:
        found = [p for p in path.rglob("*") if p.is_file() and file_format(p.name)]
        files = [(str(p), p.relative_to(path).as_posix(), _stamp(p)) for p in found]
    # Hugging Face caches and the indices of save_to_disk lie beside the data.
    files = [file for file in files if not file[1].startswith(".") and "cache-" not in file[1]]
    files = [file for file in files if PurePosixPath(file[1]).name not in _METADATA_FILES]
    files = _only_config(spec, files)
    if not files:
        raise ValueError(
            f"data.spec: {spec.name!r} holds no data files ({', '.join(FORMATS)}, also .gz)"
        )
    return sorted(files, key=lambda file: file[1])


_METADATA_FILES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")


def _only_config(spec: SourceSpec, files: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Files of the configuration asked for; of ``all``, where there is one; else every file."""
    wanted = spec.config or "all"
    chosen = [
        file
        for file in files
        if wanted in (*PurePosixPath(file[1]).parts[:-1], file[1].split(".")[0])
    ]
    if not chosen and spec.config is None:
        return files
    if not chosen:
        names = sorted({PurePosixPath(file[1]).parts[0] for file in files})
        raise ValueError(
            f"data.spec: {spec.name!r} has no configuration {spec.config!r}; it holds "
            f"{', '.join(names)}"
        )
    return chosen


def _file_shards(
    spec: SourceSpec, files: Sequence[tuple[str, str, str]], split: Split
) -> tuple[Shard, ...]:
    wanted = spec.train_split if split == "train" else spec.test_split
    by_split: dict[str, list[str]] = {}
    for path, name, _ in files:
        by_split.setdefault(_split_of(name), []).append(path)
    if wanted is not None and wanted not in by_split:
        raise ValueError(
            f"data.spec: {spec.name!r} has no split {wanted!r}; it has "
            f"{', '.join(sorted(by_split))}"
        )
    names = [wanted] if wanted else [n for n in _SPLIT_NAMES[split] if n in by_split][:1]
    chosen = by_split[names[0]] if names else []
    if split == "train" and not chosen:
        raise ValueError(
            f"data.spec: {spec.name!r} has no train split, only {', '.join(sorted(by_split))}; "
            "name one with [train_split:NAME]"
        )
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


def _hub_files(name: str) -> list[tuple[str, str, str]]:
    if is_hub_offline():
        raise ValueError(f"data.spec: {name!r} is no local path and the Hub is switched off")
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    filesystem, root = HfFileSystem(), f"datasets/{name}"
    try:
        found: dict[str, Any] = dict(filesystem.find(root, detail=True))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise ValueError(
            f"data.spec: {name!r} is neither a local path nor a dataset on the Hub"
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(f"data.spec: the Hub does not answer for {name!r}: {error}") from error
    return [
        (f"hf://{path}", path.removeprefix(f"{root}/"), str(info.get("blob_id", info.get("size"))))
        for path, info in found.items()
        if file_format(path)
    ]


def _peek_columns(spec: SourceSpec, shards: Sequence[Shard]) -> tuple[str, ...]:
    reason: object = "it is empty"
    for shard in shards:
        for row in islice(_raw_rows(shard, limit=_PEEK_ROWS), _PEEK_ROWS):
            if not isinstance(row, MalformedRowError):
                return tuple(row)
            reason = row
    raise ValueError(f"data.spec: {spec.name!r} has no readable rows: {reason}")


def _raw_rows(
    shard: Shard, limit: int | None = None
) -> Iterator[dict[str, Any] | MalformedRowError]:
    if shard.format == "embedded":
        from a2d_ray.data.embedded import embedded_rows

        limits = [n for n in (limit, shard.limit) if n is not None]
        name = shard.path.removeprefix("embedded/")
        yield from embedded_rows(name, shard.split, min(limits) if limits else None)
        return
    yield from read_file(shard.path, shard.format)


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _embedded_identity(name: str) -> str:
    """Changes with the package that the rows come from and the code that words them."""
    package = "chitchat-dataset" if name == "embedded/chat" else "reasoning-gym"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise ValueError(
            f"data.spec: {name!r} needs {package}: pip install 'a2d-ray[quickstart]'"
        ) from None
    code = Path(__file__).with_name("embedded.py").read_bytes()
    return f"{package} {found} {hashlib.sha256(code).hexdigest()[:16]}"
