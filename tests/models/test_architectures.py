"""The table of architectures and the classes that grow from it."""

import pickle
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from a2d_ray.models import architectures
from a2d_ray.models.architectures import ARCHITECTURES, Architecture, find_architecture
from tests.tiny import tiny_a2d_model


def test_public_names():
    known = ["a2d-llama", "a2d-qwen2", "a2d-qwen3", "a2d-olmo2"]
    assert [row.model_type for row in ARCHITECTURES][: len(known)] == known
    assert architectures.A2DLlamaLMHeadModel is ARCHITECTURES[0].model_class
    assert architectures.A2DQwen2LMHeadModel is ARCHITECTURES[1].model_class
    assert architectures.A2DQwen3Config is ARCHITECTURES[2].config_class
    with pytest.raises(AttributeError):
        _ = architectures.A2DNobodysLMHeadModel


def test_rows_are_found_by_either_model_type():
    assert find_architecture("qwen2") == find_architecture("a2d-qwen2") == ARCHITECTURES[1]
    assert find_architecture("gpt2") is None  # nothing but transformers can say what it is
    assert find_architecture("a2d-gpt2") == Architecture.of("gpt2")
    with pytest.raises(ValueError, match="no causal language model of type 'vit'"):
        Architecture.of("vit")
    assert find_architecture(None) is None


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.ar_model_type)
def test_classes_are_registered_and_pickle(row):
    model = tiny_a2d_model(row.ar_model_type)
    config = AutoConfig.for_model(row.model_type)
    assert type(config) is row.config_class
    assert type(AutoModelForMaskedLM.from_config(model.config)) is row.model_class
    copy = pickle.loads(pickle.dumps(model))
    ids = torch.arange(6)[None]
    assert torch.equal(copy(ids).logits, model(ids).logits)


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.ar_model_type)
def test_hidden_states_can_be_asked_for(row):
    model = tiny_a2d_model(row.ar_model_type)
    outputs = model(torch.arange(6)[None], output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1


def test_sliding_windows_and_left_to_right_decoding_are_refused():
    with pytest.raises(ValueError, match="sliding_attention"):
        tiny_a2d_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(ValueError, match="not decoded from left to right"):
        tiny_a2d_model("llama").generate(torch.arange(3)[None])


def test_light_imports():
    """Checking a checkpoint loads neither torch, transformers nor Ray."""
    code = (
        "import sys; import a2d_ray.models.checkpoint, a2d_ray.models.conversion;"
        "heavy = {'torch', 'transformers', 'ray', 'deepspeed'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.ar_model_type)
def test_the_end_of_turn_learns_where_it_is_the_padding_token_too(row):
    model = tiny_a2d_model(row.ar_model_type, tie_word_embeddings=False)
    end = model.config.pad_token_id
    weight = model.get_input_embeddings().weight
    ids = torch.tensor([[1, 5, end, 6, end, 7]])
    model(input_ids=ids).logits.log_softmax(-1)[0, :, 7].sum().backward()
    norms = weight.grad.norm(dim=1)
    assert norms[end] > 0.1 * norms[5]
    assert norms[9] == 0
