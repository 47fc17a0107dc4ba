"""What kernels need is asked for by name, before rows are packed."""

import pytest

from a2d_ray.config import ScalingSection
from a2d_ray.training.toolchain import bf16_problem, check_gpus, check_toolchain
from a2d_ray.training.trainer import training_env


def test_a_machine_without_a_compiler_is_told(monkeypatch, tmp_path):
    (tmp_path / "Python.h").write_text("")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"neither gcc nor clang.*apt-get install gcc"):
        check_toolchain(str(tmp_path))
    compiler = tmp_path / "clang"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    check_toolchain(str(tmp_path))


def test_python_without_headers_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "cc")
    with pytest.raises(RuntimeError, match=r"no .*Python\.h.*python3-dev"):
        check_toolchain(str(tmp_path))


def test_gpus_before_ampere_have_no_bfloat16():
    assert "Tesla T4 (compute capability 7.5)" in bf16_problem("Tesla T4", (7, 5))
    assert bf16_problem("NVIDIA A100", (8, 0)) is None
    assert bf16_problem("NVIDIA B200", (10, 0)) is None


def test_a_run_on_cpus_needs_none_of_it(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_gpus(ScalingSection(use_gpu=False), "auto")


def test_workers_without_a_gpu_are_told_before_deepspeed_is_imported(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert training_env(use_gpu=False)["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in training_env(use_gpu=True)
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    assert training_env(use_gpu=False)["DS_ACCELERATOR"] == "xpu"


def test_few_processes_compile(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    assert training_env(use_gpu=True)["TORCHINDUCTOR_COMPILE_THREADS"] == "4"
