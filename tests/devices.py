"""Devices of tests: what a GPU has to show is the same code as on a CPU."""

import pytest

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
CPU_AND_GPU = ["cpu", GPU]
