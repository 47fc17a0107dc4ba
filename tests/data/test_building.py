"""What has a name is whole; what a killed job left goes; a full disk says so."""

import json
import logging
import subprocess
import sys

import pyarrow as pa
import pytest

from a2d_ray.data.packing.building import DOCUMENTS, built_beside, explain_change, remove_leftovers
from a2d_ray.data.packing.packed import MANIFEST


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_set_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "packed" / "abc"
    with pytest.raises(RuntimeError), built_beside(target) as directory:
        (directory / "half").touch()
        raise RuntimeError
    assert names(target.parent) == []
    with built_beside(target) as directory:
        (directory / "whole").touch()
        assert not target.exists()
    assert names(target) == ["whole"] and names(target.parent) == ["abc"]


def test_what_a_killed_job_left_is_cleared_away_and_a_running_job_s_place_is_not(tmp_path, caplog):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from a2d_ray.data.packing.building import built_beside\n"
        "with built_beside(Path(sys.argv[1])):\n"
        "    print('here', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "abc")]
    job = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert job.stdout.readline() == b"here\n"
        remove_leftovers(tmp_path)
        (place,) = names(tmp_path)
        assert place.startswith(".abc-")
    finally:
        job.kill()
        job.wait()
    assert names(tmp_path) == [place]
    with caplog.at_level(logging.INFO), built_beside(tmp_path / "abc") as directory:
        assert names(tmp_path) == [directory.name]
    assert "which a killed job left" in caplog.text
    assert names(tmp_path) == ["abc"]


def test_the_folders_of_others_stay(tmp_path):
    (tmp_path / ".git-x").mkdir()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert names(tmp_path) == [".git-x"]


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    table = pa.table({"ids": [[1] * 10_000]})
    with (
        pytest.raises(ValueError, match=r"data.packed_path: .* is full .*make room"),
        built_beside(tmp_path / "abc") as directory,
    ):
        path = directory / DOCUMENTS / "x.arrow"
        path.symlink_to("/dev/full")  # every write fails with ENOSPC
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"data.packed_path: cannot write to .*file"),
        built_beside(tmp_path / "file" / "abc"),
    ):
        pass


def test_a_new_set_says_how_it_differs_from_the_nearest(tmp_path):
    base = {"recipe": {"max_length": 128, "views": 1}, "sources": [{"name": "a"}]}
    for name, options in (
        ("near", {**base, "recipe": {"max_length": 64, "views": 1}}),
        ("far", {"recipe": {"max_length": 64, "views": 2}, "sources": [{"name": "b"}]}),
        (".half", base),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(json.dumps({"options": options}))
    assert explain_change(base, tmp_path) == "differs from near in recipe.max_length: 64 -> 128"
    more = {**base, "sources": [{"name": "a"}, {"name": "c"}]}
    assert 'sources.1.name: (nothing) -> "c"' in explain_change(more, tmp_path)
    assert explain_change(base, tmp_path / "missing") is None
