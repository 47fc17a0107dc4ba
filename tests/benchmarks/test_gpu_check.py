"""The check of a GPU, on a CPU: every part runs, and the table says where to look."""

import json

import pytest
import torch

from benchmarks.gpu_check.__main__ import PARTS, main, measured
from benchmarks.gpu_check.figures import Figure, format_table, largest_ratios
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.rounds import count_launches

CPU = Place(torch.device("cpu"), quick=True, is_tiny=True)


def figure(name, value, estimate):
    return Figure(part="p", name=name, value=value, unit="ms", estimate=estimate)


def test_the_farthest_figures_stand_last_in_either_direction():
    near, far, farther = figure("near", 11, 10), figure("far", 30, 10), figure("farther", 1, 10)
    others = [figure("same", 10, 10), figure("skipped", None, 10), figure("bare", 5, None)]
    assert largest_ratios([near, *others, far, farther]) == [farther, far, near]
    table = format_table([near, *others, far, farther])
    assert table.splitlines()[-3:] == ["  p, farther: 0.1", "  p, far: 3", "  p, near: 1.1"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_part_runs_on_a_cpu_without_estimates():
    figures = list(measured(CPU, list(PARTS)))
    skipped = [f for f in figures if f.value is None]
    assert {f.note for f in skipped} == {
        "skipped: only a GPU has CUDA graphs",
        "skipped: only a GPU counts them",
    }
    assert all(" graphs" in f.name or "launches" in f.name for f in skipped)
    assert {f.part for f in figures} == set(PARTS)
    assert {f.estimate for f in figures} == {None}
    assert all(f.value > 0 for f in figures if f.unit == "1/s")
    assert all(json.loads(f.line())["name"] == f.name for f in figures)


def test_launches_are_told_by_the_names_of_the_runtime():
    calls = [("cudaLaunchKernelExC", 3), ("cudaGraphLaunch", 2), ("cudaMemcpyAsync", 1)]
    others = [("cudaStreamSynchronize", 9), ("aten::add", 7), ("cudaEventRecord", 4)]
    assert count_launches([*calls, *others]) == 6


def test_a_part_that_fails_is_told_and_the_next_goes_on(monkeypatch):
    def fail(place):
        yield place.figure("machine", "before", 1, "")
        raise ImportError("No module named 'x'")

    monkeypatch.setitem(PARTS, "machine", fail)
    monkeypatch.setitem(PARTS, "training", lambda place: iter([figure("after", 2, None)]))
    before, skipped, after = measured(CPU, ["machine", "training"])
    assert (before.value, skipped.value, after.value) == (1, None, 2)
    assert "No module named 'x'" in skipped.note


def test_a_machine_without_a_gpu_is_told(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    with pytest.raises(SystemExit):
        main()
    assert "--device=cpu --tiny" in capsys.readouterr().err
