"""Where data files lie: local paths and globs, ``s3://`` and ``gs://`` URIs, the Hub.

URIs go through pyarrow's file systems, the Hub through its own; each is opened when it is read.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from a2d_ray.data.sources.mixture import (
    SpecError,
    has_wildcard,
    is_hub_offline,
    local_path,
    matching_paths,
)

_BUFFER = 2**20


def _open_zstd(raw: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    unpacked: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(unpacked, _BUFFER)  # it reads lines


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".zst": _open_zstd,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""How packed files are read, by their last suffix."""


class DataFile(NamedTuple):
    """A file of a source: where it lies, its name within the source, and what tells versions
    apart (size and time, or a hash)."""

    path: str
    name: str
    stamp: str


def list_files(name: str) -> list[DataFile]:
    """Every file that a source name stands for, in no particular order.

    Args:
        name: a local file, directory or glob, a URI of one of these, or a Hub id.

    Raises:
        SpecError: there is nothing, or the store does not answer.
    """
    if "://" in name:
        return _remote_files(name)
    path = local_path(name)
    if path is not None and path.is_file():
        return [DataFile(str(path), path.name, _stamp(path))]
    if path is not None:
        return _described([p for p in path.rglob("*") if p.is_file()], path)
    if has_wildcard(name):
        found = [p for p in matching_paths(name) if p.is_file()]
        return _described(found, Path(_fixed_part(str(Path(name).expanduser()))).resolve())
    return _hub_files(name)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is packed. A local file can be mapped and sought.

    Args:
        path: `DataFile.path`.
    """
    with contextlib.ExitStack() as stack:
        if path.startswith("hf://"):
            from huggingface_hub import HfFileSystem

            raw: Any = stack.enter_context(HfFileSystem().open(path, "rb"))
        elif "://" in path:
            from pyarrow.fs import FileSystem

            filesystem, inside = FileSystem.from_uri(path)
            opened: Any = stack.enter_context(filesystem.open_input_file(inside))
            raw = stack.enter_context(io.BufferedReader(opened, _BUFFER))  # it reads lines
        else:
            raw = stack.enter_context(open(path, "rb"))
        if unpack := COMPRESSIONS.get(Path(path).suffix.lower()):
            raw = stack.enter_context(unpack(raw))
        yield raw


def _remote_files(uri: str) -> list[DataFile]:
    from fsspec.utils import glob_translate
    from pyarrow.fs import FileSelector, FileSystem, FileType

    scheme = uri.partition("://")[0]
    base = _fixed_part(uri) if has_wildcard(uri) else uri
    try:
        filesystem, root = FileSystem.from_uri(base.rstrip("/"))
        pattern = re.compile(glob_translate(uri.removeprefix(base).lstrip("/") or "**"))
        info = filesystem.get_file_info(root)
        if info.type == FileType.File:
            infos = [info]
        else:
            infos = filesystem.get_file_info(FileSelector(root, recursive=True))
    except FileNotFoundError:
        raise SpecError(uri, "does not exist", "check its name") from None
    except (OSError, ValueError) as error:
        raise SpecError(uri, "cannot be listed", str(error)) from error
    found = []
    for info in infos:
        name = info.path.removeprefix(root).lstrip("/") or PurePosixPath(info.path).name
        if info.type == FileType.File and pattern.match(name):
            stamp = f"{info.size}-{info.mtime_ns}"
            found.append(DataFile(f"{scheme}://{info.path}", name, stamp))
    return found


def _hub_files(name: str) -> list[DataFile]:
    if is_hub_offline():
        raise SpecError(name, "is no local path", "the Hub is switched off (HF_HUB_OFFLINE)")
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    filesystem = HfFileSystem()
    root = f"datasets/{name}"
    try:
        found: dict[str, Any] = dict(filesystem.find(root, detail=True))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise SpecError(
            name, "is neither a local path nor a dataset on the Hub", "check its name"
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise SpecError(name, "got no answer from the Hub", str(error)) from error
    return [
        DataFile(
            f"hf://{path}",
            path.removeprefix(f"{root}/"),
            str(info.get("blob_id", info.get("size"))),
        )
        for path, info in found.items()
    ]


def _described(paths: list[Path], root: Path) -> list[DataFile]:
    return [DataFile(str(p), p.relative_to(root).as_posix(), _stamp(p)) for p in paths]


def _fixed_part(pattern: str) -> str:
    """The folder in front of a glob's first wildcard."""
    fixed = re.split(r"[*?]", pattern, maxsplit=1)[0]
    return fixed.rpartition("/")[0] or "."


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
