"""A tiny random checkpoint of each objective, without an AR mode."""

from pathlib import Path

import pytest

from a2d_ray import convert, load
from a2d_ray.models.checkpoint import save_checkpoint
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Paths by objective; block size 4."""
    root = tmp_path_factory.mktemp("evaluation")
    base = convert(str(save_tiny_ar(root / "ar")), root / "converted")
    lm = load(base, dtype="float32", device="cpu")
    paths = {}
    for objective in ("mdlm", "bd3lm"):
        terms = {"objective": objective, "block_size": 4, "ar_mode": None}
        contract = lm.contract.model_copy(update=terms)
        paths[objective] = root / objective
        save_checkpoint(paths[objective], model=lm.model, tokenizer=lm.tokenizer, contract=contract)
    return paths
