"""Model directories as the world has them: contradictory, damaged, impossible.

The tensors decide what a model is; what cannot be used is one line that names the file or the
tensor, and leaves nothing behind.
"""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from a2d_ray import convert
from a2d_ray.models import checkpoint as checkpoints
from a2d_ray.models.checkpoint import load_checkpoint, save_checkpoint
from a2d_ray.models.conversion import describe
from tests.closeness import assert_close
from tests.commands import run_python
from tests.tiny import save_tiny_ar, tiny_ar_model, tiny_tokenizer

FP32 = {"dtype": torch.float32, "device": "cpu"}
IDS = torch.arange(10, 30)[None]
CAUSAL = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
MASK_ID = 259
WEIGHT = "model.layers.1.mlp.up_proj.weight"


def edit_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "removed"}))


def edit_weights(directory, **changes):
    path = directory / "model.safetensors"
    weights = load_file(path) | {key.replace("__", "."): value for key, value in changes.items()}
    save_file(weights, path, metadata={"format": "pt"})


def logits_of(model):
    with torch.no_grad():
        return model(IDS, CAUSAL).logits[..., :MASK_ID]


def contradict(source, **saving):
    """An untied model whose config.json says that it is tied; returns its logits."""
    name = "qwen3" if saving else "llama"
    model = tiny_ar_model(name, tie_word_embeddings=False)
    model.save_pretrained(source, **saving)
    tiny_tokenizer().save_pretrained(source)
    edit_json(source / "config.json", tie_word_embeddings=True)
    with torch.no_grad():
        return model(IDS).logits[..., :MASK_ID]


@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "20KB"}], ids=["llama", "sharded qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_of_its_own_is_kept_whatever_the_configuration_says(tmp_path, saving, dtype, caplog):
    expected = contradict(tmp_path / "ar", **saving)
    out = convert(str(tmp_path / "ar"), tmp_path / "a2d", dtype=dtype)
    assert "lm_head.weight differ" in caplog.text
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(out / "model.safetensors")
    if dtype == "float32":
        assert_close(logits_of(load_checkpoint(out, **FP32).model), expected)


def test_an_a2d_directory_that_contradicts_itself_survives_loading_and_saving(tmp_path):
    expected = contradict(tmp_path / "ar")
    out = convert(str(tmp_path / "ar"), tmp_path / "a2d")
    edit_json(out / "config.json", tie_word_embeddings=True)
    loaded = load_checkpoint(out, **FP32)
    assert_close(logits_of(loaded.model), expected)
    save_checkpoint(
        tmp_path / "again", model=loaded.model, tokenizer=None, contract=loaded.contract
    )
    assert_close(logits_of(load_checkpoint(tmp_path / "again", **FP32).model), expected)


def test_saving_asks_the_parameters_and_not_the_configuration(tmp_path):
    loaded = load_checkpoint(
        convert(str(save_tiny_ar(tmp_path / "ar", tie_word_embeddings=False)), tmp_path / "a2d"),
        **FP32,
    )
    expected = logits_of(loaded.model)
    loaded.model.config.tie_word_embeddings = True
    save_checkpoint(tmp_path / "b", model=loaded.model, tokenizer=None, contract=loaded.contract)
    assert_close(logits_of(load_checkpoint(tmp_path / "b", **FP32).model), expected)


def test_equal_tables_stay_one(tmp_path):
    source = save_tiny_ar(tmp_path / "ar")
    edit_weights(
        source,
        lm_head__weight=load_file(source / "model.safetensors")[
            "model.embed_tokens.weight"
        ].clone(),
    )
    model = load_checkpoint(convert(str(source), tmp_path / "a2d"), **FP32).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("pad", [320, 10**9, -1])
@pytest.mark.parametrize("is_a2d", [False, True], ids=["ar", "a2d"])
def test_special_ids_outside_the_table_are_dropped_with_a_message(tmp_path, caplog, pad, is_a2d):
    directory = save_tiny_ar(tmp_path / "ar")
    if is_a2d:
        directory = convert(str(directory), tmp_path / "a2d")
    for file_name in ("config.json", "generation_config.json"):
        edit_json(directory / file_name, pad_token_id=pad, eos_token_id=[2, 400])
    with caplog.at_level(logging.WARNING):
        out = directory if is_a2d else convert(str(directory), tmp_path / "out")
        model = load_checkpoint(out, **FP32).model
    assert f"pad_token_id={pad} is outside the 320 rows" in caplog.text
    assert model.config.pad_token_id is None and model.config.eos_token_id == [2]
    assert model.generation_config.pad_token_id is None


def shards(directory):
    return sorted(directory.glob("model-*.safetensors"))


def sharded(directory):
    tiny_ar_model().save_pretrained(directory, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(directory)
    assert len(shards(directory)) > 3
    return directory


def whole(directory):
    return save_tiny_ar(directory)


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def with_weight(value):
    return lambda d: edit_weights(d, **{WEIGHT.replace(".", "__"): value})


def spoil(name, value):
    def change(directory):
        weights = load_file(directory / "model.safetensors")
        weights[name][3, 3] = value
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return change


DAMAGES = {
    "a shard is missing": (sharded, lambda d: shards(d)[1].unlink(), r"model-00002-of"),
    "a shard is cut": (sharded, lambda d: cut(shards(d)[1]), r"model-00002-of.* is damaged"),
    "a shard is empty": (
        sharded,
        lambda d: shards(d)[1].write_bytes(b""),
        r"model-00002-of.*damag",
    ),
    "a shard is another": (
        sharded,
        lambda d: shutil.copy(shards(d)[0], shards(d)[1]),
        r"model-00002-of\S+ lacks model\.",
    ),
    "a shard is a directory": (
        sharded,
        lambda d: (shards(d)[1].unlink(), (d / "model-00002-of-00009.safetensors").mkdir()),
        r"model-00002-of",
    ),
    "the index is cut": (sharded, lambda d: cut(d / "model.safetensors.index.json"), "valid JSON"),
    "the index is empty": (
        sharded,
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
        "has no weight_map",
    ),
    "the file is cut": (whole, lambda d: cut(d / "model.safetensors"), "safetensors is damaged"),
    "the file is text": (
        whole,
        lambda d: (d / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "safetensors is damaged",
    ),
    "NaN": (whole, spoil(WEIGHT, float("nan")), f"NaN or infinity in {WEIGHT}"),
    "infinity": (
        whole,
        spoil("model.embed_tokens.weight", float("inf")),
        r"NaN or infinity in .*model\.embed_tokens\.weight",
    ),
    "int8": (whole, with_weight(torch.ones(64, 32, dtype=torch.int8)), f"{WEIGHT} is of type I8"),
    "a mark in config.json": (
        whole,
        lambda d: (d / "config.json").write_text("\ufeff" + (d / "config.json").read_text()),
        "config.json is not valid JSON",
    ),
    "config.json is binary": (
        whole,
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json is not valid JSON",
    ),
    "a size of the wrong type": (
        whole,
        lambda d: edit_json(d / "config.json", hidden_size="wide"),
        "ar cannot be loaded",
    ),
    "no heads": (
        whole,
        lambda d: edit_json(d / "config.json", num_attention_heads=0),
        "ar cannot be loaded",
    ),
    "an activation that is none": (
        whole,
        lambda d: edit_json(d / "config.json", hidden_act="gelufold"),
        "ar cannot be loaded: .*gelufold",
    ),
    "rotary of an unknown kind": (
        whole,
        lambda d: edit_json(
            d / "config.json",
            rope_parameters={"rope_type": "new", "rope_theta": 1e4, "factor": 2.0},
        ),
        "ar cannot be loaded",
    ),
    "a size of another model": (
        whole,
        lambda d: edit_json(d / "config.json", intermediate_size=48),
        r"model\.layers\.0\.mlp",
    ),
    "a layer too many": (
        whole,
        lambda d: edit_json(d / "config.json", num_hidden_layers=3),
        r"model\.layers\.2",
    ),
    "more layers than tensors": (
        whole,
        lambda d: edit_json(d / "config.json", num_hidden_layers=10**9),
        r"num_hidden_layers=1000000000, and they hold 20 tensors",
    ),
    "generation_config.json is cut": (
        whole,
        lambda d: cut(d / "generation_config.json"),
        "generation_config.json is not valid JSON",
    ),
    "the index leads out of the directory": (
        sharded,
        lambda d: (d / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}})
        ),
        "has no weight_map",
    ),
    "a length that is no number": (
        whole,
        lambda d: edit_json(d / "tokenizer_config.json", model_max_length="long"),
        "model_max_length='long' in tokenizer_config.json is no number",
    ),
    "template options that are none": (
        whole,
        lambda d: edit_json(d / "tokenizer_config.json", template_options=5),
        "template_options in tokenizer_config.json must be an object",
    ),
    "adapters beside the weights": (
        save_tiny_ar,
        lambda d: (d / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}'),
        "holds adapters",
    ),
    "no model_type": (
        whole,
        lambda d: edit_json(d / "config.json", model_type="removed"),
        "config.json.* names no model_type",
    ),
    "model_type is a number": (
        whole,
        lambda d: edit_json(d / "config.json", model_type=5),
        "config.json.* names no model_type",
    ),
    "model_type is a list": (
        whole,
        lambda d: edit_json(d / "config.json", model_type=["llama"], architectures=5),
        "config.json.* names no model_type",
    ),
    "a layer too few": (
        whole,
        lambda d: edit_json(d / "config.json", num_hidden_layers=1),
        r"model\.layers\.1",
    ),
    "config.json is a list": (
        whole,
        lambda d: (d / "config.json").write_text("[]"),
        "config.json must hold a JSON object",
    ),
    "no weights": (whole, lambda d: (d / "model.safetensors").unlink(), "ar"),
    "no tokenizer": (  # an A2D directory may do without
        save_tiny_ar,
        lambda d: [(d / f).unlink() for f in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer",
    ),
    "the tokenizer is cut": (whole, lambda d: cut(d / "tokenizer.json"), "the tokenizer of .*ar"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_directory_is_one_line_and_leaves_nothing(tmp_path, name):
    make, damage, message = DAMAGES[name]
    source = make(tmp_path / "ar")
    damage(source)
    with pytest.raises(ValueError, match=message) as caught:
        convert(str(source), tmp_path / "new" / "a2d")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ar"]


@pytest.mark.parametrize("name", [name for name in DAMAGES if DAMAGES[name][0] is whole])
def test_a_damaged_a2d_directory_is_one_line_too(tmp_path, name):
    _, damage, message = DAMAGES[name]
    directory = convert(str(save_tiny_ar(tmp_path / "x")), tmp_path / "ar")
    damage(directory)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(directory, **FP32)
    assert "\n" not in str(caught.value)


def test_adapters_whose_bases_are_each_other_are_one_line(tmp_path):
    """One of them is its own base, two of them are the other's."""
    places = [convert(str(save_tiny_ar(tmp_path / f"x{i}")), tmp_path / str(i)) for i in range(3)]
    for place, base in zip(places, (places[0], places[2], places[1]), strict=True):
        (place / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(base)})
        )
    for place in places:
        with pytest.raises(ValueError, match=r"adapter_config\.json leads back to"):
            load_checkpoint(place, **FP32)


def test_what_is_wrong_with_the_configuration_is_not_laid_on_the_tokenizer(tmp_path):
    source = save_tiny_ar(tmp_path / "ar")
    edit_json(source / "config.json", max_position_embeddings="4k")
    with pytest.raises(ValueError, match=r"/ar cannot be loaded: .*max_position") as caught:
        convert(str(source), tmp_path / "a2d")
    assert "tokenizer" not in str(caught.value)


def test_a_command_ends_with_one_line_and_2(tmp_path):
    source = sharded(tmp_path / "ar")
    shards(source)[0].unlink()
    done = run_python("jobs/convert.py", f"source={source}", f"output={tmp_path / 'a2d'}")
    assert done.code == 2 and done.out == ""
    error, log = done.err.splitlines()
    assert error.startswith("error: ") and log.startswith("log: ")
    assert "model-00001-of" in done.err


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "_save_weights", full)
    source = save_tiny_ar(tmp_path / "ar")
    with pytest.raises(ValueError, match=r"a2d cannot be written: .*No space left"):
        convert(str(source), tmp_path / "a2d")
    assert [path.name for path in tmp_path.iterdir()] == ["ar"]


def test_a_conversion_is_read_back_and_compared(tmp_path, monkeypatch):
    source = str(save_tiny_ar(tmp_path / "ar"))
    assert "under a causal mask its logits are the AR model's" in describe(
        convert(source, tmp_path / "a2d")
    )
    written = checkpoints._save_weights

    def damaged(directory, model, *args):
        model.model.layers[0].mlp.up_proj.weight.data *= 1.5
        return written(directory, model, *args)

    monkeypatch.setattr(checkpoints, "_save_weights", damaged)
    with pytest.raises(ValueError, match=r"does not compute what the AR model does"):
        convert(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert "checked" not in describe(convert(source, tmp_path / "c", random_init=True))


@pytest.mark.parametrize(
    ("token", "use"),
    [
        ("a", "ordinary text"),
        ("<|endoftext|>", "the mark of a text's beginning or end"),
        ("<|im_start|>", "the tokenizer's bos_token"),
        ("<tool>", "ordinary text"),
        ("<turn>", "part of the chat template"),
    ],
)
def test_a_mask_token_that_marks_text_is_refused(tmp_path, token, use):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<turn>", "<reserved>"]})
    tokenizer.chat_template = "<turn>" + tokenizer.chat_template
    source = save_tiny_ar(tmp_path / "ar")
    tokenizer.save_pretrained(source)
    with pytest.raises(ValueError, match=rf"marks text already \(it is {use}"):
        convert(str(source), tmp_path / "a2d", mask_token=token)
    out = convert(str(source), tmp_path / "a2d", mask_token="<reserved>")
    assert load_checkpoint(out, **FP32).tokenizer.mask_token == "<reserved>"


def test_a_tokenizer_that_needs_sentencepiece_says_so(tmp_path):
    source = save_tiny_ar(tmp_path / "ar")
    (source / "tokenizer.json").unlink()
    edit_json(source / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    (source / "tokenizer.model").write_bytes(b"\x0e\x00")
    with pytest.raises(ValueError, match="pip install sentencepiece"):
        convert(str(source), tmp_path / "a2d")


def test_a_model_without_an_end_says_so(tmp_path, caplog):
    source = save_tiny_ar(tmp_path / "ar", eos_token_id=None)
    edit_json(source / "tokenizer_config.json", eos_token="removed")
    (source / "generation_config.json").unlink(missing_ok=True)
    convert(str(source), tmp_path / "a2d")
    assert "has no end token" in caplog.text
