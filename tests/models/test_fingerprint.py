"""Whatever changes an answer changes the fingerprint; nothing else does."""

import copy
import shutil

import pytest
import torch

import a2d_ray
from a2d_ray.models.fingerprint import values_hash
from tests.tiny import save_tiny_ar


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fingerprint")
    return a2d_ray.convert(str(save_tiny_ar(directory / "ar")), directory / "a2d")


@pytest.fixture
def lm(path):
    return a2d_ray.load(path, dtype="float32", device="cpu", objective="bd3lm")


def _weight(lm):
    with torch.no_grad():
        next(iter(lm.model.parameters()))[0, 0] += 1e-3


def _rope(lm):
    lm.model.config.rope_parameters["rope_theta"] *= 2


def _norm(lm):
    lm.model.config.rms_norm_eps *= 2


def _eos(lm):
    lm.model.generation_config.eos_token_id = [2, 7]


def _template(lm):
    lm.tokenizer.chat_template += " "


@pytest.mark.parametrize("change", [_weight, _rope, _norm, _eos, _template])
def test_what_changes_answers_changes_it(lm, change):
    before = values_hash(lm.fingerprint())
    change(lm)
    assert values_hash(lm.fingerprint()) != before


def test_type_and_contract_change_it_and_the_path_does_not(path, lm, tmp_path):
    shutil.copytree(path, tmp_path / "elsewhere")
    options = {"dtype": "float32", "device": "cpu", "objective": "bd3lm"}
    same = a2d_ray.load(tmp_path / "elsewhere", **options)
    assert same.fingerprint() == lm.fingerprint() == copy.deepcopy(lm).fingerprint()
    for other in ({"dtype": "bfloat16"}, {"objective": "mdlm"}):
        assert a2d_ray.load(path, **options | other).fingerprint() != lm.fingerprint()
