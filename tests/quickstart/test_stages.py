"""A stage runs once per set of inputs, and a killed one leaves no record."""

import io
import json
from contextlib import ExitStack

import pytest
from rich.console import Console

from a2d_ray.config import QuickstartConfig
from a2d_ray.quickstart.flow import _Quickstart
from a2d_ray.quickstart.stages import Record, Stages


class Counter:
    def __init__(self):
        self.runs = 0

    def __call__(self):
        self.runs += 1
        return {"runs": self.runs}


def make(tmp_path):
    text = io.StringIO()
    return Stages(tmp_path, Console(file=text), 3), text


def test_a_finished_stage_is_skipped_by_the_next_process(tmp_path):
    work = Counter()
    first, _ = make(tmp_path)
    record = first.run("train", {"steps": 2, "betas": (0.9, 0.98)}, work)
    second, text = make(tmp_path)
    again = second.run("train", {"steps": 2, "betas": (0.9, 0.98)}, work)
    assert work.runs == 1
    assert again == record
    assert again.result == {"runs": 1}
    assert "done before" in text.getvalue()


def test_changed_inputs_run_it_again(tmp_path):
    work, (stages, _) = Counter(), make(tmp_path)
    stages.run("train", {"steps": 2}, work)
    record = stages.run("train", {"steps": 3}, work)
    assert (work.runs, record.inputs) == (2, {"steps": 3})
    assert stages.find("train") == record


def test_missing_outputs_run_it_again(tmp_path):
    work, (stages, _), output = Counter(), make(tmp_path), tmp_path / "out"
    output.touch()
    stages.run("convert", {}, work, outputs=[output])
    stages.run("convert", {}, work, outputs=[output])
    output.unlink()
    stages.run("convert", {}, work, outputs=[output])
    assert work.runs == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_stage_leaves_no_record(tmp_path, error):
    stages, _ = make(tmp_path)

    def die():
        raise error

    with pytest.raises(error):
        stages.run("train", {}, die)
    assert stages.find("train") is None


@pytest.mark.parametrize("text", ["", "{", '{"inputs": {}}', '{"other": 1}'])
def test_a_broken_record_does_not_hold(tmp_path, text):
    work, (stages, _) = Counter(), make(tmp_path)
    stages.folder.mkdir()
    (stages.folder / "train.json").write_text(text)
    assert stages.run("train", {}, work).result == {"runs": 1}


def test_a_stage_that_is_not_kept_always_runs(tmp_path):
    work, (stages, _) = Counter(), make(tmp_path)
    for _ in range(2):
        stages.run("ask", {}, work, is_kept=False)
    assert work.runs == 2
    assert stages.find("ask") is None


def test_the_digest_tells_inputs_apart():
    one, two = (Record(inputs={"a": a}, result={}, seconds=0.0) for a in (1, 2))
    assert one.digest != two.digest
    assert one.digest == Record(inputs={"a": 1}, result={"x": 1}, seconds=9.0).digest


def test_results_must_be_json(tmp_path):
    stages, _ = make(tmp_path)
    with pytest.raises(TypeError):
        stages.run("train", {}, lambda: {"path": tmp_path})


def test_the_record_is_readable_json(tmp_path):
    stages, _ = make(tmp_path)
    stages.run("train", {"steps": 2}, Counter())
    written = json.loads((tmp_path / "stages" / "train.json").read_text())
    assert written["inputs"] == {"steps": 2}
    assert written["seconds"] >= 0


def test_training_goes_on_with_its_own_settings_only(tmp_path):
    quickstart = _Quickstart(QuickstartConfig(root=str(tmp_path)), ExitStack())
    quickstart.stages.run("plan", {"steps": 2}, lambda: {})
    quickstart.refuse_other_settings({"steps": 3})  # nothing is trained yet
    (tmp_path / "train").mkdir()
    quickstart.refuse_other_settings({"steps": 2})
    with pytest.raises(ValueError, match=r"^root=.* steps=2, not 3: delete it, or choose another"):
        quickstart.refuse_other_settings({"steps": 3})
