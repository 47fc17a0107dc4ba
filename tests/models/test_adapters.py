"""LoRA: what is trained, what stays, and that merging changes no logit."""

import pytest
import torch

from a2d_ray import convert
from a2d_ray.config import LoraSection, OptimSection
from a2d_ray.models.adapter_checkpoint import merge_adapters, save_adapters
from a2d_ray.models.adapters import (
    ADAPTER_WEIGHTS,
    add_adapters,
    merged_copy,
    restore_adapters,
)
from a2d_ray.models.checkpoint import check_checkpoint, load_checkpoint
from a2d_ray.training.optim import make_optimizer
from tests.closeness import assert_close
from tests.tiny import save_tiny_ar

LORA = LoraSection(r=4, alpha=8)
CPU = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(params=["llama-tied", "qwen3-untied"])
def base(request, tmp_path):
    name, tied = request.param.split("-")
    ar = save_tiny_ar(tmp_path / "ar", name, tie_word_embeddings=tied == "tied")
    return str(convert(str(ar), tmp_path / "a2d"))


def trained(base):
    """A loaded base, its adapters after a step, and the weights before."""
    loaded = load_checkpoint(base, **CPU)
    before = {name: p.detach().clone() for name, p in loaded.model.state_dict().items()}
    mask_id = loaded.contract.mask_token_id
    adapted = add_adapters(loaded.model, LORA, mask_id=mask_id, base=base)
    optimizer = make_optimizer(loaded.model, OptimSection(lr=0.05, weight_decay=0.5))
    for _ in range(2):  # lora_B is zero at first, and lora_A has no gradient then
        logits = loaded.model(torch.tensor([[5, 6, mask_id, 8]])).logits
        torch.nn.functional.cross_entropy(logits[0, 2:3], torch.tensor([7])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded, adapted, before


def logits_of(model, mask_id):
    with torch.no_grad():
        return model(torch.tensor([[5, mask_id, 7, 8], [9, 10, mask_id, mask_id]])).logits


def test_the_base_stays_and_adapters_and_mask_row_move(base):
    loaded, adapted, before = trained(base)
    mask_id = loaded.contract.mask_token_id
    names = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "trainable_tokens" in n for n in names)
    assert any("trainable_tokens" in n for n in names)
    after = loaded.model.state_dict()
    for name, weight in before.items():
        stored = [
            n for n in after if n.replace(".base_layer", "").replace(".token_adapter", "") == name
        ]
        assert all(torch.equal(after[n], weight) for n in stored), name
    merged = merged_copy(adapted)
    changed = merged.model.embed_tokens.weight != before["model.embed_tokens.weight"]
    assert changed.any(1).nonzero().flatten().tolist() == [mask_id]


def test_merged_saved_loaded_and_adapted_give_the_same_logits(base, tmp_path):
    loaded, adapted, _ = trained(base)
    mask_id = loaded.contract.mask_token_id
    contract = loaded.contract.model_copy(update={"objective": "bd3lm"})
    expected = logits_of(loaded.model.eval(), mask_id)
    plain = logits_of(load_checkpoint(base, **CPU).model, mask_id)
    assert (expected - plain).abs().max() > 0.05  # the adapters do something
    columns = [i for i in range(expected.shape[-1]) if i != mask_id]
    assert_close(logits_of(merged_copy(adapted), mask_id)[..., columns], expected[..., columns])
    saved = tmp_path / "adapters"
    saved.mkdir()
    save_adapters(saved, adapted, tokenizer=loaded.tokenizer, contract=contract)
    assert not (saved / "model.safetensors").exists()
    assert check_checkpoint(saved).objective == "bd3lm"
    out = merge_adapters(str(saved), tmp_path / "merged")
    for path in (saved, out):
        again = load_checkpoint(path, **CPU)
        assert again.contract.objective == "bd3lm" and again.tokenizer is not None
        assert_close(logits_of(again.model, mask_id)[..., columns], expected[..., columns])
    fresh = load_checkpoint(base, **CPU)
    adapted = add_adapters(fresh.model, LORA, mask_id=mask_id, base=base)
    restore_adapters(adapted, saved / ADAPTER_WEIGHTS)
    assert_close(logits_of(fresh.model.eval(), mask_id), expected)


def test_what_cannot_be_merged_or_adapted(base, tmp_path):
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        merge_adapters(base, tmp_path / "out")
    loaded, adapted, _ = trained(base)
    saved = tmp_path / "adapters"
    saved.mkdir()
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "gone")
    save_adapters(saved, adapted, tokenizer=None, contract=loaded.contract)
    with pytest.raises(ValueError, match=r"their base cannot be used: .*gone"):
        check_checkpoint(saved)
    model = load_checkpoint(base, **CPU).model
    with pytest.raises(ValueError, match=r"model.lora.targets=\['nothing'\]"):
        add_adapters(model, LoraSection(targets=["nothing"]), mask_id=3, base=base)


def test_first_values_are_those_of_the_seed(base):
    def first(seed):
        model = load_checkpoint(base, **CPU).model
        before = torch.random.get_rng_state()
        add_adapters(model, LORA, mask_id=3, base=base, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return model.model.layers[0].self_attn.q_proj.lora_A["default"].weight

    one, again, other = first(1), first(1), first(2)
    assert torch.equal(one, again) and not torch.equal(one, other)
