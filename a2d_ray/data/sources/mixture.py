"""The spec grammar of data mixtures: ``name[key:value,...]`` joined by ``+``.

    embedded/sums[train:5_000,test:200]+data/mine.jsonl+OpenCoder-LLM/opc-sft-stage2[lang:python]

Nothing heavy is imported, so that a typo is refused before Ray or torch load.
"""

import difflib
import glob
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from a2d_ray.config import OptionError
from a2d_ray.data.sources.embedded import EMBEDDED

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
FORM = "write name[key:value,...] joined by '+'"
DATASETS_DIR_VARIABLE = "A2D_DATASETS_DIR"
DATA_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow", ".txt")
PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
URI_SCHEMES = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss", "file")
LARGEST_WEIGHT = 100
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_OPTIONS_AT_END = re.compile(r"\[([^\[\]]*)\]$")
_TRUE = ("1", "true", "yes", "on")


class SpecError(OptionError):
    """A part of ``data.spec`` that cannot be used."""

    def __init__(self, part: str, problem: str, fix: str) -> None:
        super().__init__("data.spec", part, problem, fix)
        self.args = (part, problem, fix)


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One part of a mixture.

    Attributes:
        name: ``embedded/NAME``, a file, directory or glob, a URI of one of these, or a Hub id.
        config: configuration of the dataset (key ``name``); None: its only or all of them.
        train: rows used for training, at most; None: all.
        test: rows held out, at most; None: all of the test split, or ``data.test_fraction``.
        lang: keep rows of this programming language only.
        weight: how often a training row is used per epoch, > 0; below 1, a share of the rows
            chosen by a seeded hash; the part above a whole number likewise.
        train_split: name of the split to train on; None: ``train`` or ``train_sft``.
        test_split: name of the split to hold out; None: ``test``, ``test_sft`` or ``validation``.
    """

    name: str
    config: str | None = None
    train: int | None = None
    test: int | None = None
    lang: str | None = None
    weight: float = 1.0
    train_split: str | None = None
    test_split: str | None = None

    @property
    def key(self) -> str:
        """What names the source in document ids and manifests."""
        parts = [self.name]
        for label, value in (("name", self.config), ("lang", self.lang)):
            parts += [f"{label}:{value}"] if value else []
        return "|".join(parts)


def parse_spec(spec: str) -> tuple[SourceSpec, ...]:
    """The sources of a mixture, in order.

    Args:
        spec: ``name[key:value,...]`` joined by ``+``. ``+``, ``[`` and ``]`` inside the path of
            something that exists are part of the path.

    Raises:
        SpecError: names the part, the key or value that is wrong, and what is allowed.
    """
    sources = tuple(_parse_part(part) for part in _split_parts(spec))
    keys = [source.key for source in sources]
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError(spec, f"lists {key!r} twice", "use [weight:...] to rescale it")
    return sources


def check_spec(spec: str) -> tuple[SourceSpec, ...]:
    """`parse_spec`, and refuses what can be seen to be missing without opening anything.

    Raises:
        SpecError: a typo, an unknown embedded set, a path that does not exist, or a Hub id
            while the Hub is switched off.
    """
    sources = parse_spec(spec)
    for source in sources:
        _check_source(source.name)
    return sources


def local_path(name: str) -> Path | None:
    """The existing file or directory that a source name stands for, or None.

    ``A2D_DATASETS_DIR`` is looked into first, so that it can mirror Hub ids.
    """
    mirror = os.environ.get(DATASETS_DIR_VARIABLE)
    candidates = [Path(mirror).expanduser() / name] if mirror else []
    for path in [*candidates, Path(name).expanduser()]:
        if path.exists():
            return path.resolve()
    return None


def has_wildcard(name: str) -> bool:
    """Whether a source name is a glob (``*``, ``?``)."""
    return "*" in name or "?" in name


def matching_paths(pattern: str) -> list[Path]:
    """Local paths that a glob matches, sorted; ``**`` is any number of folders."""
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return sorted(Path(path).resolve() for path in found)


def is_hub_offline() -> bool:
    """Whether the environment switches the Hub off."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in _TRUE for name in names)


def _split_parts(spec: str) -> Iterator[str]:
    pieces = re.split(r"\+(?![^\[]*\])", spec)
    while pieces:
        count = next(
            (n for n in range(len(pieces), 1, -1) if _is_path("+".join(pieces[:n]))),
            1,
        )
        yield "+".join(pieces[:count])
        pieces = pieces[count:]


def _is_path(part: str) -> bool:
    return any(local_path(path) is not None for path in (part, _OPTIONS_AT_END.sub("", part)))


def _parse_part(part: str) -> SourceSpec:
    text = part.strip()
    if not text:
        raise SpecError(part, "is an empty part", FORM)
    if local_path(text) is not None:
        return SourceSpec(name=text)
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", text)
    behind = _OPTIONS_AT_END.search(text)
    if behind is not None and local_path(text[: behind.start()]) is not None:
        name, options = text[: behind.start()], behind[1]
    elif match is None:
        raise SpecError(text, "cannot be read", FORM)
    else:
        name, options = match[1].strip(), match[2]
    return SourceSpec(name=name, **(_parse_options(text, options) if options is not None else {}))


def _parse_options(part: str, options: str) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for option in options.split(","):
        key, colon, value = (piece.strip() for piece in option.partition(":"))
        if not colon or not value:
            raise SpecError(part, f"holds {option!r}, which is not key:value", FORM)
        if key not in _OPTIONS:
            near = difflib.get_close_matches(key, _OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(
                part, f"has the unknown key {key!r}", f"{hint}allowed: {', '.join(_OPTIONS)}"
            )
        field, read = _OPTIONS[key]
        if field in parsed:
            raise SpecError(part, f"gives {key!r} twice", "leave one out")
        try:
            parsed[field] = read(value)
        except ValueError as error:
            raise SpecError(part, f"holds {key}:{value}", f"it {error}") from None
    return parsed


def _read_count(value: str) -> int:
    if not re.fullmatch(r"\d+(_\d+)*", value):
        raise ValueError("must be a whole number of rows, like 5_000")
    return int(value)


def _read_weight(value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= LARGEST_WEIGHT:
        raise ValueError(f"must be in (0, {LARGEST_WEIGHT}]: how often a row is used per epoch")
    return weight


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "train": ("train", _read_count),
    "test": ("test", _read_count),
    "name": ("config", str),
    "lang": ("lang", str.lower),
    "weight": ("weight", _read_weight),
    "train_split": ("train_split", str),
    "test_split": ("test_split", str),
}


def _check_source(name: str) -> None:
    if name.startswith("embedded/"):
        _check_embedded(name.removeprefix("embedded/"))
    elif "://" in name:
        _check_uri(name)
    elif local_path(name) is None and has_wildcard(name):
        if not matching_paths(name):
            raise SpecError(name, "matches no file", "write it as a shell would take it")
    elif local_path(name) is None:
        _check_hub(name)


def _check_embedded(name: str) -> None:
    if name in EMBEDDED:
        return
    near = difflib.get_close_matches(name, EMBEDDED, n=1)
    hint = f"did you mean 'embedded/{near[0]}'? " if near else ""
    allowed = ", ".join(f"embedded/{known}" for known in EMBEDDED)
    raise SpecError(f"embedded/{name}", "does not exist", f"{hint}allowed: {allowed}")


def _check_uri(name: str) -> None:
    scheme = name.partition("://")[0]
    if scheme not in URI_SCHEMES:
        allowed = ", ".join(f"{known}://" for known in URI_SCHEMES)
        raise SpecError(name, f"cannot be read by {scheme}://", f"allowed: {allowed}")


def _check_hub(name: str) -> None:
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(
        DATA_SUFFIXES + PACKED_SUFFIXES
    )
    if looks_like_path or not _HUB_ID.match(name):
        raise SpecError(name, "does not exist", _near_path(name) or "name a file or a folder")
    if is_hub_offline():
        near = f"{hint} " if (hint := _near_path(name)) else ""
        raise SpecError(
            name,
            "is no local path and the Hub is switched off (HF_HUB_OFFLINE)",
            f"{near}unset that, or point {DATASETS_DIR_VARIABLE} at a mirror",
        )


def _near_path(name: str) -> str:
    path = Path(name).expanduser()
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"did you mean {str(path.parent / near[0])!r}?" if near else ""
