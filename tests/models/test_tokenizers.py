"""Loading a tokenizer never asks whether code of the checkpoint may run."""

import subprocess
import sys

import pytest

from a2d_ray import convert
from a2d_ray.models.tokenizers import load_tokenizer
from tests.tiny import save_tiny_ar


def test_own_checkpoint_loads_in_a_fresh_process_without_a_question(tmp_path):
    convert(str(save_tiny_ar(tmp_path / "ar")), tmp_path / "a2d")
    code = (
        "import sys; from a2d_ray.models.tokenizers import load_tokenizer;"
        f"print(load_tokenizer({str(tmp_path / 'a2d')!r})('ab').input_ids, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ids = load_tokenizer(tmp_path / "ar")("ab").input_ids
    assert done.stdout.strip() == f"{ids} False"
    assert "custom code" not in done.stdout + done.stderr


def test_no_tokenizer_is_a_clear_error(tmp_path):
    from tests.tiny import tiny_ar_model

    tiny_ar_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
