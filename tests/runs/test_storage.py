"""Files of a run are whole, wherever it lies; paths mean the same in every process."""

import pickle
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from a2d_ray.config.errors import OptionError
from a2d_ray.runs import storage
from a2d_ray.runs.storage import (
    RunDirectory,
    absolute_if_local,
    absolute_path,
    check_writable,
    write_whole,
)


@pytest.fixture(params=["disk", "store"])
def directory(request, tmp_path):
    if request.param == "disk":
        return RunDirectory.of(str(tmp_path), "run")
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return RunDirectory(store, "run")


def test_what_is_written_is_read(directory):
    assert directory.read("a.json") is None and not directory.exists()
    directory.write("a.json", b"1")
    directory.write("below/b.json", b"2")
    directory.write("a.json", b"3")
    assert (directory.read("a.json"), directory.read("below/b.json")) == (b"3", b"2")
    assert directory.read("a.json/nothing") is None
    assert directory.names() == {"a.json", "below"} and directory.names("below") == {"b.json"}
    assert directory.names("nothing") == set() and directory.exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    class Full:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def open_output_stream(self, path):
            with self.real.open_output_stream(path) as file:
                file.write(b"ha")
            raise OSError(28, "No space left on device")

    whole = RunDirectory.of(str(tmp_path))
    whole.write("a.json", b"old")
    with pytest.raises(OSError, match="No space"):
        RunDirectory(Full(whole.filesystem), whole.path).write("a.json", b"new")
    assert whole.read("a.json") == b"old" and whole.names() == {"a.json"}


def test_a_reader_sees_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with path.open() as reader:
        write_whole(path, "new, and longer")
        assert reader.read() == "old"
    assert path.read_text() == "new, and longer" and list(tmp_path.iterdir()) == [path]


def test_a_directory_travels_to_other_processes(tmp_path):
    RunDirectory.of(str(tmp_path), "run").write("a", b"1")
    there = pickle.loads(pickle.dumps(RunDirectory.of(f"file://{tmp_path}/", "run")))
    assert there.path == f"{tmp_path}/run" and there.read("a") == b"1"


def test_a_uri_of_no_known_kind_names_its_option():
    with pytest.raises(OptionError, match=r"^output=gopher://x/y cannot be opened"):
        RunDirectory.of("gopher://x/y", field="output")


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_path("runs") == absolute_path("~/runs") == str(tmp_path / "runs")
    assert absolute_path("s3://bucket/runs") == "s3://bucket/runs"
    assert absolute_if_local("org/model") == "org/model"
    Path("org/model").mkdir(parents=True)
    assert absolute_if_local("org/model") == str(tmp_path / "org/model")


def test_what_cannot_be_written(tmp_path):
    check_writable("f", str(tmp_path / "new" / "one"))
    (tmp_path / "file").write_text("")
    for path, problem in ((tmp_path / "file", "is not"), ("s3://bucket", "must be")):
        with pytest.raises(OptionError, match=rf"^f={path} {problem}.*: choose another f"):
            check_writable("f", str(path))


def test_files_of_a_run_have_one_name_each():
    names = [getattr(storage, name) for name in vars(storage) if name.endswith("_FILE")]
    assert len(set(names)) == len(names) == 4
