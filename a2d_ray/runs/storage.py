"""The directory of a run, on a local or shared disk or in an object store."""

import contextlib
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from a2d_ray.config.errors import OptionError

RUN_CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.jsonl"
WORKERS_FILE = "workers.json"  # address of every rank's node, by rank, since the last (re)start


@dataclass(frozen=True)
class RunDirectory:
    """Where a run lies.

    Attributes:
        filesystem: that holds it.
        path: within the filesystem.
    """

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, place: str, name: str = "", *, field: str = "run.storage_path") -> "RunDirectory":
        """The directory `name` below a path or URI, or that itself.

        Args:
            place: path or URI.
            name: of the run.
            field: option that holds `place`.

        Raises:
            OptionError: a URI that pyarrow does not know.
        """
        filesystem: pafs.FileSystem = pafs.LocalFileSystem()
        root = absolute_path(place)
        if "://" in place:
            try:
                filesystem, root = pafs.FileSystem.from_uri(place)
            except ValueError as error:  # pyarrow's ArrowInvalid is one
                fix = "give a directory or a URI such as s3://bucket/runs"
                raise OptionError(field, place, f"cannot be opened ({error})", fix) from None
        return cls(filesystem, f"{root.rstrip('/')}/{name}".rstrip("/"))

    @property
    def local_path(self) -> Path | None:
        """The directory on this machine, or None."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    def exists(self) -> bool:
        """Whether anything of the run is there."""
        return bool(self.names())

    def names(self, directory: str = "") -> set[str]:
        """Names of what lies in it, or in a directory of it."""
        selector = pafs.FileSelector(f"{self.path}/{directory}".rstrip("/"), allow_not_found=True)
        return {info.base_name for info in self.filesystem.get_file_info(selector)}

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; who reads it sees the old or the new one, as a whole.

        Raises:
            OSError: it cannot be written. What was there before still is.
        """
        path = f"{self.path}/{name}"
        draft = f"{self.path}/.{uuid.uuid4().hex}"
        self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        try:
            with self.filesystem.open_output_stream(draft) as file:
                file.write(content)
            self.filesystem.move(draft, path)
        except OSError:
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(draft)
            raise

    def delete(self, name: str) -> None:
        """Deletes a file or a directory, if it is there."""
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        if info.type == pafs.FileType.Directory:
            self.filesystem.delete_dir(info.path)
        elif info.type == pafs.FileType.File:
            self.filesystem.delete_file(info.path)

    def move(self, source: str, target: str) -> None:
        """Renames a directory; object stores copy it, since they know no directories."""
        source = f"{self.path}/{source}"
        target = f"{self.path}/{target}"
        if self.local_path is not None:
            self.filesystem.move(source, target)
            return
        self.filesystem.create_dir(target, recursive=True)
        pafs.copy_files(
            source,
            target,
            source_filesystem=self.filesystem,
            destination_filesystem=self.filesystem,
        )
        self.filesystem.delete_dir(source)

    def append(self, name: str, content: bytes) -> None:
        """Appends to a file; local only."""
        with open(f"{self.path}/{name}", "ab") as file:
            file.write(content)


def write_whole(path: Path, text: str) -> None:
    """Writes a local file; see `RunDirectory.write`."""
    RunDirectory.of(str(path.parent)).write(path.name, text.encode())


def absolute_path(place: str) -> str:
    """A path made absolute, since Ray's processes work in other directories; a URI as it is."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


def absolute_if_local(name: str) -> str:
    """A path that exists made absolute; what is none (a Hub id) as it is."""
    return absolute_path(name) if Path(name).expanduser().exists() else name


def check_writable(field: str, path: str) -> None:
    """Makes the directory and writes into it.

    Args:
        field: option that holds `path`.
        path: of a directory.

    Raises:
        OptionError: it cannot be written.
    """
    if "://" in path:
        fix = f"choose another {field}"
        raise OptionError(field, path, "must be a directory on a local or shared disk", fix)
    directory = Path(path).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OptionError(
            field,
            path,
            f"is not a writable directory ({os.strerror(error.errno or 0)})",
            f"choose another {field}, or make that one writable",
        ) from None
