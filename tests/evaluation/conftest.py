"""Tiny random checkpoints: of each objective, and one that has an AR mode."""

from pathlib import Path

import pytest

from a2d_ray import convert, load
from a2d_ray.models.checkpoint import save_checkpoint
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Paths by objective, and `causal`: BD3LM with an AR mode. Block size 4."""
    root = tmp_path_factory.mktemp("evaluation")
    base = convert(str(save_tiny_ar(root / "ar")), root / "converted")
    lm = load(base, dtype="float32", device="cpu")
    terms = {
        "mdlm": {"objective": "mdlm", "ar_mode": None},
        "bd3lm": {"objective": "bd3lm", "ar_mode": None},
        "causal": {"objective": "bd3lm", "ar_mode": "trained", "clean_attention": "causal"},
    }
    paths = {}
    for name, own in terms.items():
        contract = lm.contract.model_copy(update=own | {"block_size": 4})
        paths[name] = root / name
        save_checkpoint(paths[name], model=lm.model, tokenizer=lm.tokenizer, contract=contract)
    return paths
