"""Asking a run to stop; the best checkpoint; disks that are full."""

import json
import signal
import time

import pyarrow.fs as pafs
import pytest

from a2d_ray.runs.storage import RunDirectory
from a2d_ray.training import stopping
from a2d_ray.training.checkpoints import BEST_FILE, BEST_NAME, keep_best
from a2d_ray.training.stopping import StopWatch, stop_on_signals


@pytest.fixture(params=["disk", "store"])
def run_directory(request, tmp_path):
    if request.param == "disk":
        return RunDirectory.of(str(tmp_path), "run")
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return RunDirectory(store, "run")


def test_sigterm_asks_the_run_to_stop(run_directory, monkeypatch):
    monkeypatch.setattr(stopping, "STOP_POLL_S", 1000.0)
    before = signal.getsignal(signal.SIGTERM)
    watch = StopWatch(run_directory, None)
    assert not watch.is_over(0.1)
    with stop_on_signals(run_directory):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not watch.is_over(0.1)  # looked less than STOP_POLL_S ago
    watch = StopWatch(run_directory, None)
    assert watch.is_over(0.1) and watch.is_over(0.1)


def test_the_first_ctrl_c_asks_and_the_second_one_ends(run_directory, interruptible, capsys):
    with pytest.raises(KeyboardInterrupt), stop_on_signals(run_directory):
        signal.raise_signal(signal.SIGINT)
        assert StopWatch(run_directory, None).is_over(0.1)
        assert "Ctrl-C again ends at once" in capsys.readouterr().err
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is interruptible


def test_a_deadline_leaves_time_for_a_step_and_a_checkpoint(run_directory):
    deadline = time.time() + 10_000
    watch = StopWatch(run_directory, deadline)
    assert not watch.is_over(1)
    watch.save_s = 9_999
    assert watch.is_over(1)
    assert not StopWatch(run_directory, deadline).is_over(4_000)
    assert StopWatch(run_directory, deadline).is_over(6_000)


def test_the_best_checkpoint_is_kept_without_its_state(run_directory, tmp_path):
    source = tmp_path / "source"
    (source / "state").mkdir(parents=True)
    (source / "state" / "progress.json").write_text("{}")
    for step, nelbo in ((1, 3.0), (2, 2.0), (3, 2.5)):
        (source / "config.json").write_text(str(step))
        keep_best(run_directory, source, step, nelbo)
    best = json.loads(run_directory.read(f"{BEST_NAME}/{BEST_FILE}"))
    assert best == {"step": 2, "nelbo": 2.0}
    assert run_directory.read(f"{BEST_NAME}/config.json") == b"2"
    names = {
        f.base_name
        for f in run_directory.filesystem.get_file_info(
            pafs.FileSelector(run_directory.path, recursive=True)
        )
    }
    assert names == {BEST_NAME, BEST_FILE, "config.json"}
