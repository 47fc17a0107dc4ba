"""The directory of a run, on a local or shared disk or in an object store."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

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
    def of(cls, storage_path: str, name: str) -> "RunDirectory":
        """The directory of run `name` below a path or URI.

        Raises:
            ValueError: a URI that pyarrow does not know.
        """
        if "://" not in storage_path:
            root = str(Path(storage_path).expanduser().absolute())
            return cls(pafs.LocalFileSystem(), f"{root}/{name}")
        try:
            filesystem, root = pafs.FileSystem.from_uri(storage_path)
        except ValueError as error:  # pyarrow's ArrowInvalid is one
            raise ValueError(f"run.storage_path={storage_path} cannot be opened: {error}") from None
        return cls(filesystem, f"{root.rstrip('/')}/{name}")

    @property
    def local_path(self) -> Path | None:
        """The directory on this machine, or None."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    def exists(self) -> bool:
        """Whether anything of the run is there."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return bool(self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        path = f"{self.path}/{name}"
        if self.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(path) as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Writes a whole file."""
        folder = f"{self.path}/{name}".rpartition("/")[0]
        self.filesystem.create_dir(folder, recursive=True)
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content)

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
