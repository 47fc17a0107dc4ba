"""Diffusion checkpoints of other projects become A2D checkpoints: tensors, mask, contract, ends."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from a2d_ray import SamplingParams, convert, load
from a2d_ray.models.conversion import describe
from a2d_ray.models.foreign import find_foreign
from tests.foreign import LAYOUTS, foreign_ar_model, save_foreign

BLOCKS = {"objective": "bd3lm", "block_grid": "absolute", "clean_attention": "block"}
CONTRACTS = {
    "sdar": BLOCKS | {"mask_token_id": 259, "block_size": 4, "right_shift_logits": False},
    "fast_dllm_v2": BLOCKS | {"mask_token_id": 151665, "block_size": 8, "right_shift_logits": True},
    "dream": {"objective": "mdlm", "mask_token_id": 259, "right_shift_logits": True},
    "llada": {"objective": "mdlm", "mask_token_id": 259, "right_shift_logits": False},
    "stable_diffcoder": BLOCKS | {"mask_token_id": 5, "block_size": 4, "right_shift_logits": False},
}
ENDS = {"sdar": {0, 2}, "fast_dllm_v2": {0, 2}, "dream": {2, 256, 258}, "llada": {0, 3}}


def change_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(directory)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_import_has_its_weights_its_mask_and_its_contract(tmp_path, layout):
    source = save_foreign(tmp_path / "foreign", layout)
    out = convert(str(source), tmp_path / "a2d")
    lm = load(out, dtype="float32", device="cpu")
    assert {key: getattr(lm.contract, key) for key in CONTRACTS[layout]} == CONTRACTS[layout]
    assert lm.contract.ar_mode is None and lm.contract.source == str(source)
    assert f"objective     {lm.contract.objective}" in describe(out)

    expected = foreign_ar_model(layout)
    ids = torch.randint(6, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[:, ::3] = lm.contract.mask_token_id  # its trained row is kept, in and out
    causal = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        assert torch.equal(lm.model(ids, causal).logits, expected(ids).logits)
    head, expected_head = (m.get_output_embeddings().weight for m in (lm.model, expected))
    assert torch.equal(head, expected_head)

    text, mask_id = LAYOUTS[layout]["mask"]
    assert (lm.tokenizer.mask_token, lm.tokenizer.mask_token_id) == (text, mask_id)
    assert lm.tokenizer.decode(lm.tokenizer("Größe 7").input_ids) == "Größe 7"
    assert lm.eos_token_ids >= ENDS.get(layout, {0, 2})
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    assert len(lm.generate([[7, 8, 9]], params)[0].token_ids) == 8  # it knows its objective


@pytest.mark.parametrize(
    ("layout", "changes", "options", "message"),
    [
        ("llada", {"alibi": True, "scale_logits": True}, {}, "alibi=True .* scale_logits=True"),
        ("llada", {"block_type": "sequential"}, {}, "block_type='sequential' .known is 'llama'"),
        ("llada", {"d_model": 64}, {}, "of another shape: .*embed_tokens"),
        ("llada", {"n_layers": 3}, {}, "missing: model.layers.2"),
        ("sdar", {"use_sliding_window": True}, {}, "SDAR model with use_sliding_window=True"),
        ("sdar", {"mask_token_id": 320}, {}, "id 320, and its embedding 320 rows"),
        ("sdar", {"quantization_config": {"bits": 4}}, {}, "quantized"),
        ("sdar", {}, {"mask_token": "<|im_start|>"}, "mask_token .* trained mask token"),
        ("sdar", {}, {"random_init": True}, "random_init .* trained weights"),
        ("dream", {"num_hidden_layers": "two"}, {}, "config.json of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, layout, changes, options, message):
    source = change_config(save_foreign(tmp_path / "foreign", layout), **changes)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "a2d", **options)
    assert not (tmp_path / "a2d").exists()


def test_a_tokenizer_whose_files_disagree_is_refused(tmp_path):
    source = save_foreign(tmp_path / "foreign", "dream")
    path = source / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values["added_tokens_decoder"]["270"] = values["added_tokens_decoder"].pop("259")
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"gives <.* the id \d+, and .* says \d+"):
        convert(str(source), tmp_path / "a2d")


def test_computed_buffers_are_left_out_and_unknown_tensors_are_not(tmp_path):
    source = save_foreign(tmp_path / "foreign", "sdar")
    path = source / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, path)
    convert(str(source), tmp_path / "a2d")
    save_file(weights | {"model.layers.0.gate.weight": torch.ones(4)}, path)
    with pytest.raises(ValueError, match=r"unexpected: model\.layers\.0\.gate\.weight"):
        convert(str(source), tmp_path / "b")


def test_an_ar_model_is_no_foreign_one():
    for model_type in ("llama", "qwen2", "qwen3", "a2d-qwen3", "sdar_moe", None):
        assert find_foreign({"model_type": model_type, "architectures": None}) is None


def test_the_table_is_read_without_torch():
    code = "import sys, a2d_ray.models.foreign; print({'torch', 'transformers'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
