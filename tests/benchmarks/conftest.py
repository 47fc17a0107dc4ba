"""A small model in place of the one that suites measure."""

from dataclasses import replace

import pytest

from benchmarks import models


@pytest.fixture
def small(monkeypatch):
    """Two layers and 512 tokens."""
    sizes = replace(
        models.SIZES,
        hidden=32,
        intermediate=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocab=512,
    )
    monkeypatch.setattr(models, "SIZES", sizes)
