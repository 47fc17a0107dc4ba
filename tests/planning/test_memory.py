"""Parameters and bytes against real models and what autograd really keeps."""

import random

import pytest
import torch

from a2d_ray.diffusion import losses
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.models.architectures import ARCHITECTURES, Architecture
from a2d_ray.models.miniature import make_miniature
from a2d_ray.planning import memory
from a2d_ray.planning.flops import WHOLE
from a2d_ray.planning.memory import layer_activations, token_activations, worker_memory
from a2d_ray.planning.sizes import KNOWN_MODELS, find_sizes, sizes_of
from a2d_ray.proving.tiny import tiny_config
from a2d_ray.training.flops import StepFlops
from tests.planning.test_flops import trained
from tests.rows import packed_row
from tests.tiny import tiny_a2d_model
from tests.training.modules import module_of

WIDE = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 8}
N = 304


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.ar_model_type)
def test_parameters_are_those_of_the_model(row, seed):
    """Random options on torch's meta device; a new architecture is tested by its row."""
    rng = random.Random(seed)
    kv_heads, head_dim = rng.choice([1, 2, 3]), rng.choice([4, 6])
    heads = kv_heads * rng.choice([1, 2, 4])
    options = {
        "hidden_size": heads * head_dim,
        "intermediate_size": rng.randint(8, 64),
        "vocab_size": rng.randint(40, 400),
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    known = row.config_class().to_dict()
    options |= {key: rng.random() < 0.5 for key in ("attention_bias", "mlp_bias") if key in known}
    if "head_dim" in known:
        options["head_dim"] = rng.choice([4, 6, 8])
    config = row.config_class(pad_token_id=None, **options)
    with torch.device("meta"):
        model = row.model_class(config)
    sizes = sizes_of(config.to_dict())
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.layer_parameters == sum(p.numel() for p in model.model.layers[0].parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("Qwen/Qwen3-0.6B", 596.0),
        ("models/a2d/Qwen3-8B/", 8190.7),
        ("package:smollm2", 134.5),
        ("meta-llama/Llama-3.2-1B", 1235.8),
        ("Qwen/Qwen2.5-0.5B", 494.0),
    ],
)
def test_known_models_have_their_published_sizes(name, millions):
    assert find_sizes(name).parameters / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "deepseek_v3", "qwen3_moe", "cohere2"])
def test_parameters_of_other_families_are_counted(name):
    config = tiny_config(name)
    architecture = Architecture.of(name)
    with torch.device("meta"):
        model = architecture.ar_model_class(config)
    sizes = sizes_of(config.to_dict() | {"model_type": architecture.model_type})
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.layers == config.num_hidden_layers and sizes.vocab == 320
    flops = StepFlops.of(make_miniature(architecture, config).a2d)
    assert 2 * 3 * sizes.layers * sizes.pair_products == pytest.approx(flops.per_pair, rel=1e-6)
    if name != "deepseek_v3":  # its miniature has one layer more than the configuration
        counted = 2 * 3 * sizes.layers * sizes.layer_matrix_parameters
        assert counted == pytest.approx(flops.per_token, rel=0.01)


def test_a_directory_is_read_and_a_stranger_refused(tmp_path):
    tiny_a2d_model("qwen3").config.save_pretrained(tmp_path)
    assert find_sizes(str(tmp_path)).layers == 2
    with pytest.raises(ValueError, match=r"train.model.path.*/nowhere/.*Qwen3-0.6B"):
        find_sizes("/nowhere/at-all")
    with pytest.raises(ValueError, match="no causal language model of type 'vit'"):
        sizes_of({"model_type": "vit"})
    with pytest.raises(ValueError, match="vocab_size"):
        sizes_of({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2,
                  "intermediate_size": 8})  # fmt: skip
    assert all(find_sizes(name).parameters > 1e8 for name in KNOWN_MODELS)


def kept_bytes(architecture, num_layers):
    """Bytes that autograd keeps of a forward, without weights, their casts and scores."""
    heads = {"num_key_value_heads": 4, **({"head_dim": 16} if architecture == "qwen3" else {})}
    model = tiny_a2d_model(architecture, num_hidden_layers=num_layers, **WIDE, **heads)
    module = module_of(model, torch.bfloat16)
    row = packed_row([(7, [(64, False), (128, True)], True)])
    layout = build_layout([row], LayoutSpec(objective="bd3lm", block_size=16))
    assert int((layout.doc_RT >= 0).sum()) == N
    noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(1).long())
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    shapes = {tuple(p.shape) for p in module.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept, held = {}, []

    def pack(tensor):
        held.append(tensor)
        storage = tensor.untyped_storage()
        # What attention keeps of its scores is the CPU's: FlexAttention computes them again.
        is_scores = tensor.shape[-1:] == (N,) or (tensor.dim() == 3 and tensor.shape[0] == 4)
        is_scores = is_scores and tensor.shape[-1] > 16
        is_weight = storage.data_ptr() in weights or tuple(tensor.shape) in shapes
        if not (is_scores or is_weight):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(layout, noise)
    return sum(kept.values()), sizes_of(model.config.to_dict())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2"])
def test_activations_are_what_autograd_keeps(architecture):
    fewer, _ = kept_bytes(architecture, 2)
    more, sizes = kept_bytes(architecture, 4)
    measured = (more - fewer) / 2 / N
    assert layer_activations(sizes) == pytest.approx(measured, rel=0.05)


def test_zero_shards_what_its_stage_says():
    sizes = find_sizes("Qwen/Qwen3-0.6B")
    p = sizes.parameters

    def of(stage, workers):
        return worker_memory(
            sizes, zero_stage=stage, num_workers=workers, micro_tokens=2048, model=WHOLE
        )

    bucket = 4 * memory.BUCKET_ELEMENTS
    assert of(0, 8).gradients == 4 * p and of(0, 8).optimizer == 8 * p
    assert of(1, 8).gradients == 4 * p + bucket and of(1, 8).optimizer == 12 * p / 8
    assert of(2, 8).gradients == 4 * p / 8 + bucket and of(2, 8).weights == of(0, 8).weights
    assert of(3, 8).weights < of(2, 8).weights / 5
    totals = [of(stage, 64).total for stage in range(4)]
    assert totals[1] > totals[2] > totals[3]


def test_adapters_are_those_of_peft():
    from peft import LoraConfig, get_peft_model

    model = tiny_a2d_model("qwen3", **WIDE)
    sizes = sizes_of(model.config.to_dict())
    for targets in ("all-linear", ["q_proj", "down_proj"]):
        adapted = get_peft_model(
            tiny_a2d_model("qwen3", **WIDE), LoraConfig(r=4, target_modules=targets)
        )
        counted = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        mask_row = sizes.hidden
        assert (
            sizes.trained_parameters(trained(lora={"r": 4, "targets": targets}))
            == counted + mask_row
        )


def test_checkpointing_keeps_the_inputs_of_layers():
    sizes = find_sizes("package:smollm2")
    kept = token_activations(sizes, trained(gradient_checkpointing=True)) - layer_activations(sizes)
    assert kept == sizes.layers * sizes.hidden * 4
    assert (
        token_activations(sizes, trained(trainable_layers=15))
        == token_activations(sizes, WHOLE) / 2
    )


def test_the_chunk_of_logits_is_the_loss_s():
    assert memory.LOGITS_CHUNK_TOKENS == losses.CHUNK_TOKENS
