"""Reading contracts, refusing what does not fit, round trips."""

import json
import logging
import shutil

import pytest
import torch

from a2d_ray import convert
from a2d_ray.models.checkpoint import (
    check_checkpoint,
    load_checkpoint,
    read_contract,
    save_checkpoint,
)
from a2d_ray.models.contract import Contract
from a2d_ray.text.language_model import LanguageModel
from tests.closeness import assert_close
from tests.tiny import save_tiny_ar, tiny_a2d_model

FP32 = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return convert(str(save_tiny_ar(folder / "ar")), folder / "a2d")


@pytest.fixture
def copy(converted, tmp_path):
    """A copy of the converted directory whose config.json may be edited."""
    shutil.copytree(converted, tmp_path / "copy")

    def edit(**changes):
        path = tmp_path / "copy" / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v != "removed"}))
        return tmp_path / "copy"

    return edit


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_save_and_load_are_inverse(tmp_path, tied):
    model = tiny_a2d_model("qwen2", tie_word_embeddings=tied)
    contract = Contract(
        objective="bd3lm", mask_token_id=259, block_size=4, block_sizes=(4, 8), source="x"
    )
    save_checkpoint(tmp_path, model=model, tokenizer=None, contract=contract)
    loaded = load_checkpoint(tmp_path, **FP32)
    assert loaded.contract.model_copy(update={"a2d_ray_version": None}) == contract
    assert loaded.tokenizer is None
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    ids = torch.arange(8)[None]
    assert_close(loaded.model(ids).logits, model(ids).logits)


def test_a_given_state_dict_is_what_is_saved(tmp_path):
    model, other = tiny_a2d_model(seed=0), tiny_a2d_model(seed=1)
    contract = Contract(mask_token_id=259)
    weights = other.state_dict()
    save_checkpoint(
        tmp_path,
        model=model,
        tokenizer=None,
        contract=contract,
        dtype=torch.bfloat16,
        state_dict=weights,
    )
    loaded = load_checkpoint(tmp_path, dtype=torch.bfloat16, device="cpu").model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name].bfloat16()) for name in weights)
    wrong = {"extra": torch.ones(1)} | weights
    del wrong["model.norm.weight"]
    with pytest.raises(ValueError, match=r"extra, model\.norm\.weight"):
        save_checkpoint(tmp_path, model=model, tokenizer=None, contract=contract, state_dict=wrong)


def test_overrides_replace_the_contract(converted):
    contract = read_contract(converted, objective="mdlm", block_size=8, mask_token_id=None)
    assert (contract.objective, contract.block_size, contract.mask_token_id) == ("mdlm", 8, 259)
    terms = {"clean_attention": "causal", "right_shift_logits": True, "eos_token_ids": [5, 6]}
    contract = read_contract(converted, **terms)
    assert contract.clean_attention == "causal" and contract.right_shift_logits
    assert contract.eos_token_ids == (5, 6)
    loaded = load_checkpoint(converted, **FP32, **terms)
    ends = LanguageModel(loaded.model, loaded.tokenizer, loaded.contract).eos_token_ids
    assert ends == {2, 5, 6}
    with pytest.raises(ValueError, match=r"eos_token_ids \(320\).*vocabulary of 320 rows"):
        read_contract(converted, eos_token_ids=[5, 320])


def test_a_directory_without_contract(copy, caplog):
    directory = copy(a2d="removed")
    with caplog.at_level(logging.WARNING):
        contract = check_checkpoint(directory, block_size=None)
    assert (contract.objective, contract.block_size) == ("bd3lm", 32)
    assert (contract.block_grid, contract.mask_token_id) == ("prompt_end", 259)
    assert len(caplog.records) == 1 and "has no a2d contract" in caplog.text
    (directory / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="give mask_token_id"):
        check_checkpoint(directory)
    assert check_checkpoint(directory, mask_token_id=5).mask_token_id == 5


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"mask_token_id": 320}, "outside its vocabulary of 320"),
        ({"mask_token_id": 1, "objective": "gpt"}, "objective"),
        ({"mask_token_id": 1, "block_size": 8, "block_sizes": [4]}, "was not trained"),
        ({}, "mask_token_id"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused(copy, contract, message):
    with pytest.raises(ValueError, match=message):
        check_checkpoint(copy(a2d=contract))


def test_an_untrained_block_size_is_refused(copy):
    directory = copy(a2d={"mask_token_id": 1, "block_size": 4, "block_sizes": [4, 8]})
    assert check_checkpoint(directory, block_size=8).block_size == 8
    with pytest.raises(ValueError, match=r"block_size \(16\) was not trained"):
        check_checkpoint(directory, block_size=16)


def test_weights_must_be_there_and_fit(copy):
    directory = copy(num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"missing: model\.layers\.2"):
        load_checkpoint(directory, **FP32)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        check_checkpoint(directory)


def test_what_is_no_a2d_checkpoint_is_named(converted, tmp_path):
    cases = {
        str(converted.parent / "ar"): r"convert it first with python jobs/convert\.py",
        str(save_tiny_ar(tmp_path / "gpt2", "gpt2")): "autoregressive gpt2 model: convert it first",
        str(tmp_path / "nothing"): "does not exist",
        str(tmp_path): "no config.json",
        str(tmp_path / "gpt2" / "config.json"): "is a file",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            check_checkpoint(path)


def test_broken_json_is_named(copy):
    directory = copy()
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        check_checkpoint(directory)
