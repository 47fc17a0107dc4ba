"""``a2d``: the jobs as a command, also where there is no clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser

import pytest

from a2d_ray.jobs import doctor
from a2d_ray.jobs.completion import next_words
from a2d_ray.jobs.table import JOBS
from tests.commands import ROOT, run_python


def test_jobs_are_those_of_the_repository_and_say_the_same():
    assert JOBS.keys() == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    for name in ("sft_bd3lm", "plan"):
        ours = run_python("-m", "a2d_ray.jobs.command", name, "--dry-run")
        theirs = run_python(f"jobs/{name}.py", "--dry-run")
        assert (ours.code, ours.out) == (theirs.code, theirs.out) and ours.out
    shown = run_python("-m", "a2d_ray.jobs.command", "sample", "--help").out
    assert shown.startswith("usage: a2d sample [CONFIG.yaml]")


def test_a_job_sets_how_threads_wait_before_torch_is_there(monkeypatch, tmp_path):
    """Threads that spin beside another program made a first answer take 63 s instead of 2."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    found = tmp_path / "found"
    code = f"""
import os, sys
from a2d_ray.jobs import status
from a2d_ray.jobs.run import run_job
def main():
    open("{found}", "w").write(os.environ["OMP_WAIT_POLICY"] + str("torch" in sys.modules))
status.main = main
run_job("status")
"""
    run_python("-c", code)
    assert found.read_text() == "PASSIVEFalse"


def test_help_names_every_job_and_a_wrong_name_gets_the_near_one():
    text = run_python("-m", "a2d_ray.jobs.command").out
    assert all(f"  {name} " in text for name in [*JOBS, "doctor", "completion"])
    done = run_python("-m", "a2d_ray.jobs.command", "sft-bd3lm")
    assert done.code == 2 and done.err == (
        "error: there is no job 'sft-bd3lm': did you mean sft_bd3lm?\n"
    )


def test_completion_knows_jobs_files_keys_and_values():
    assert next_words(["pre"]) == ["prepare_data"]
    assert next_words(["sft_mdlm", "optim.sch"]) == ["optim.schedule="]
    assert next_words(["sft_mdlm", "optim.schedule=c"]) == [
        "optim.schedule=cosine",
        "optim.schedule=constant",
    ]
    assert next_words(["sft_mdlm", "a.yaml", "run.resume="]) == [
        "run.resume=true",
        "run.resume=false",
    ]
    assert next_words(["sft_mdlm", "sft_mdlm_a"]) == ["sft_mdlm_alpaca.yaml"]
    assert "evaluate/bbh.yaml" in next_words(["evaluate", ""])
    assert next_words(["serve", "serve"]) == ["serve.yaml"]  # the others are Ray Serve's
    assert next_words(["nonsense", "x"]) == []


def test_bash_completes(tmp_path):
    """Bash itself, with the words that it would give."""
    command = tmp_path / "a2d"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m a2d_ray.jobs.command "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(a2d completion bash)"; COMP_WORDS=(a2d convert sour); COMP_CWORD=2; _a2d;'
        'echo "${COMPREPLY[@]}"; complete -p a2d'
    )
    environ = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "source=", done.stderr
    assert "_a2d" in done.stdout.splitlines()[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel of this tree installs."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "a2d_ray", root / "a2d_ray")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--no-index", "-w", root / "dist", root],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (root / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "site")
    return root / "site"


def test_a_wheel_holds_jobs_and_files_and_runs_anywhere(installed, tmp_path):
    shipped = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "a2d_ray").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    there = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert shipped <= there, shipped - there
    points = ConfigParser()
    points.read(next(installed.glob("*.dist-info/entry_points.txt")))
    assert points["console_scripts"]["a2d"] == "a2d_ray.jobs.command:main"

    def a2d(*args):
        environ = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.run(
            [sys.executable, "-m", "a2d_ray.jobs.command", *args],
            cwd=tmp_path, env=environ, capture_output=True, text=True,
        )  # fmt: skip

    for file in ("sft_bd3lm_alpaca.yaml", "jobs/configs/sft_bd3lm_alpaca.yaml"):
        found = a2d("sft_bd3lm", file, "--dry-run")
        assert found.returncode == 0 and "preset: reference" in found.stdout, found.stderr
    assert "does not exist" in a2d("sft_bd3lm", "../sft_mdlm.yaml").stderr
    refused = a2d("benchmark", "sampling")
    assert refused.returncode == 2 and "come with the repository" in refused.stderr


def test_the_doctor_names_what_will_not_work(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("PATH", "/nowhere")
    doctor.examine()
    text = capsys.readouterr().out
    for fact in ("a2d-ray:", "torch ", "memory:", "disk:", "Ray:", "Hub:", "compiler:   none"):
        assert fact in text
    for problem in ("no C compiler", "RAY_ADDRESS=127.0.0.1:9 does not", "http://127.0.0.1:9 is"):
        assert any(problem in line for line in text.splitlines() if "will not work" in line)
