"""Gated adapters: any values leave the AR mode as it was, bit for bit; they alone learn."""

import copy
from dataclasses import replace

import pytest
import torch

from a2d_ray import convert
from a2d_ray.config import LoraSection
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, noised_ids
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, Request
from a2d_ray.models.adapter_checkpoint import merge_adapters, save_gated
from a2d_ray.models.architectures import ARCHITECTURES, Architecture
from a2d_ray.models.checkpoint import check_checkpoint, load_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.models.forward_plan import plan_forward
from a2d_ray.models.gated_lora import add_gated_adapters, gate_of, gated_linears, settled_copy
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.miniature import make_miniature
from a2d_ray.proving.tiny import tiny_config
from a2d_ray.training.module import DiffusionModule
from tests.closeness import assert_close
from tests.rows import MIXED, packed_row, split_documents
from tests.tiny import save_tiny_ar, tiny_a2d_model

MASK = 300
LORA = LoraSection(r=4, alpha=8, noised_only=True)
SPEC = LayoutSpec(objective="bd3lm", block_size=4, eos_id=2, causal_clean=True, ar_targets=True)
CPU = {"dtype": torch.float32, "device": "cpu"}
KINDS = [(row.ar_model_type, tied) for row in ARCHITECTURES for tied in (True, False)]


def with_adapters(name="llama", *, tied=True, size=30.0):
    """A model with adapters and mask row of large random values, and the same model without."""
    plain = tiny_a2d_model(name, tie_word_embeddings=tied)
    model = tiny_a2d_model(name, tie_word_embeddings=tied)
    adapted = add_gated_adapters(model, LORA, mask_id=MASK, base="base")
    fill(model, size)
    return plain, model, adapted


def fill(model, size):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def laid_out(rows, share=0.5):
    layout = build_layout(rows, SPEC)
    epoch_R = torch.zeros(len(rows), dtype=torch.int64)
    noise = draw_noise(layout, NoiseSpec(kind="full", full_share=share), seed=1, epoch_R=epoch_R)
    return layout, noise


def module_of(model):
    loss = LossSpec(mask_id=MASK, draft_target="ar")
    return DiffusionModule(model, loss, is_causal_clean=True, compute_dtype=torch.float32)


@pytest.mark.parametrize(("name", "tied"), KINDS)
def test_the_clean_stream_is_that_of_the_base_and_no_adapter_moves_a_bit(name, tied):
    plain, model, _ = with_adapters(name, tied=tied)
    layout, noise = laid_out([packed_row(MIXED), packed_row(MIXED[:2], seed=1)])
    ids = noised_ids(layout, noise, MASK)
    words = [i for i in range(320) if i != MASK]
    with torch.no_grad():
        expected, ours = (layout_hidden(m, ids, layout, True) for m in (plain, model))
        fill(model, 3.0)
        others = layout_hidden(model, ids, layout, True)
        heads = [m.lm_head.weight for m in (plain, model)]
        is_clean = (layout.stream_RT == 0) & (layout.doc_RT >= 0)
        logits = [h[is_clean] @ w.T for h, w in zip((expected, ours), heads, strict=True)]
    assert torch.equal(ours[is_clean], others[is_clean])
    assert_close(ours[is_clean], expected[is_clean])
    assert_close(logits[1][:, words], logits[0][:, words])
    moved = (ours - expected)[layout.stream_RT > 0].abs().amax(-1)
    assert (moved > 0.1).all()


@pytest.mark.parametrize(("name", "tied"), KINDS[:3])
def test_with_the_gate_shut_the_model_is_its_base(name, tied):
    plain, model, _ = with_adapters(name, tied=tied)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    causal = torch.ones(5, 5).tril().bool()[None, None]
    words = [i for i in range(320) if i != MASK]
    with torch.no_grad():
        layout_hidden(model, *noised_and_layout(), True)  # opens the gate, and shuts it
        expected, ours = (m(ids, attention_mask=causal).logits[..., words] for m in (plain, model))
    assert torch.equal(ours, expected)
    twin = copy.deepcopy(model)
    gate_of(twin).is_noised = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        assert not torch.equal(twin(ids, attention_mask=causal).logits[..., words], expected)
        assert torch.equal(model(ids, attention_mask=causal).logits[..., words], expected)
    assert gate_of(plain) is None


def noised_and_layout():
    layout, noise = laid_out([packed_row(MIXED)])
    return noised_ids(layout, noise, MASK), layout


def gradients_of(model, rows):
    model.zero_grad()
    for row in rows:
        module_of(model)(*laid_out(row)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradients_reach_adapters_and_the_mask_row_only():
    _, model, _ = with_adapters(size=0.1)
    gradients = gradients_of(model, [[packed_row(MIXED)]])
    learns = {name for name, gradient in gradients.items() if gradient is not None}
    assert learns == {n for n in gradients if "lora_" in n or "trainable_tokens_delta" in n}
    assert all(gradients[name].any() for name in learns)


@pytest.mark.parametrize("name", ["llama", "gemma2", "stablelm", "gpt_oss"])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_clean_tokens_first_without_a_graph_have_the_gradients_of_all_together(
    name, is_checkpointed
):
    layout, noise = laid_out([packed_row(MIXED), packed_row(MIXED[:2], seed=1)])
    found, kept = [], []
    for is_clean_frozen in (True, False):
        model = make_miniature(Architecture.of(name), tiny_config(name)).a2d
        mask_id = model.config.vocab_size - 1
        add_gated_adapters(model, LORA, mask_id=mask_id, base="base")
        fill(model, 0.1)
        if is_checkpointed:
            model.train().activation_checkpointing_enable()
        spec = LossSpec(mask_id=mask_id, draft_target="ar")
        module = DiffusionModule(model, spec, is_causal_clean=True, compute_dtype=torch.float32)
        forward = plan_forward(layout, is_causal_clean=True, is_clean_frozen=is_clean_frozen)
        plan = replace(module.plan(layout, noise), forward=forward)
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x
        )
        with hooks:
            loss = module(layout, noise, plan).loss
        loss.backward()
        learned = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach(), **learned})
        kept.append(sum(sizes))
    assert_close(*found)
    assert is_checkpointed or kept[0] < 0.75 * kept[1]


def test_packed_equals_one_document_per_row():
    _, model, _ = with_adapters("qwen3", size=0.1)
    row = packed_row(MIXED)

    def learned(rows):
        return {n: g for n, g in gradients_of(model, rows).items() if g is not None}

    expected = learned([[row]])
    assert_close(learned([split_documents(row)]), expected)
    assert_close(learned([[d] for d in split_documents(row)]), expected)


def test_gradient_checkpointing_finds_the_gate_open():
    results = []
    for is_checkpointed in (False, True):
        _, model, _ = with_adapters(size=0.1)
        if is_checkpointed:
            model.train().activation_checkpointing_enable()
        gradients = gradients_of(model, [[packed_row(MIXED)]])
        results.append({n: g for n, g in gradients.items() if g is not None})
    assert_close(*results)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_of_its_own(tmp_path, tied):
    ar = save_tiny_ar(tmp_path / "ar", "llama", tie_word_embeddings=tied)
    base = convert(str(ar), tmp_path / "a2d")
    loaded = load_checkpoint(base, **CPU)
    mask_id = loaded.contract.mask_token_id
    adapted = add_gated_adapters(loaded.model, LORA, mask_id=mask_id, base=str(base))
    fill(loaded.model, 0.3)
    contract = loaded.contract.model_copy(update={"gated_adapters": LORA, "objective": "bd3lm"})
    saved = tmp_path / "gated"
    save_gated(saved, loaded.model, adapted, tokenizer=loaded.tokenizer, contract=contract)
    base.rename(tmp_path / "elsewhere")  # nothing of it is needed
    assert check_checkpoint(saved).ar_mode == "original"
    assert check_checkpoint(saved).gated_adapters == LORA
    again = load_checkpoint(saved, **CPU)
    ids, layout = noised_and_layout()
    with torch.no_grad():
        expected, ours = (layout_hidden(m, ids, layout, True) for m in (loaded.model, again.model))
    assert torch.equal(ours, expected)
    embedding, head = again.model.get_input_embeddings(), again.model.get_output_embeddings()
    assert type(embedding) is torch.nn.Embedding and type(head) is torch.nn.Linear
    assert (embedding.weight is head.weight) == tied
    plain = load_checkpoint(saved, with_gated=False, **CPU).model
    original = load_checkpoint(tmp_path / "elsewhere", **CPU).model
    for name, weight in original.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight), name
    words = [i for i in range(320) if i != mask_id]
    ids, causal = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 1, 4, 4).tril().bool()
    with torch.no_grad():
        expected, ours = (m(ids, attention_mask=causal).logits for m in (original, again.model))
    assert torch.equal(ours[..., words], expected[..., words])
    half = load_checkpoint(saved, dtype=torch.bfloat16, device="cpu").model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="holds gated adapters"):
        merge_adapters(str(saved), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_parts_of_adapted_layers_are_the_layer():
    _, model, _ = with_adapters(size=0.3)
    parts = gated_linears(model)
    names = {n for n, _ in tiny_a2d_model().named_modules() if n.endswith("_proj")}
    assert parts.keys() == names
    x = torch.randn(1, 3, 32)
    gate_of(model).is_noised = torch.tensor([[True, False, True]])
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj"):
        p = parts[name]
        added = p.scaling * (x @ p.a_rI.T) @ p.b_Or.T
        expected = p.base(x) + torch.tensor([[[1.0], [0.0], [1.0]]]) * added
        with torch.no_grad():
            assert_close(model.get_submodule(name)(x), expected)


def decoded(engine):
    """All tokens that an engine's requests are answered with."""
    tokens = []
    while engine.has_unfinished():
        for output in engine.step():
            tokens += output.token_ids
    return tokens


def test_the_engine_decodes_a_model_in_the_middle_of_its_training():
    """A forward with gradients leaves the gate open for its backward; the engine shuts it."""
    plain, model, _ = with_adapters()
    layout, noise = laid_out([packed_row(MIXED)])
    module_of(model.train())(layout, noise).loss.backward()
    contract = Contract(
        objective="bd3lm",
        mask_token_id=MASK,
        block_size=4,
        clean_attention="causal",
        ar_mode="original",
    )
    prompt = ((5, 6, 7, 8),)
    answers = []
    for one, rule in ((settled_copy(model), "speculate"), (plain, "ar")):
        engine = Engine(one.eval(), contract, eos_ids=frozenset(), max_length=64)
        params = SamplingParams(max_new_tokens=9, rule=rule)
        engine.add_request(Request(request_id="0", prompt=prompt, params=params))
        with torch.no_grad():
            answers.append(decoded(engine))
    assert answers[0] == answers[1] and len(answers[0]) == 9
