"""Families outside Llama's form, the whole way: convert, train, resume, decode, plan."""

import copy
import json
import math

import pytest
import torch
from transformers import AutoModelForMaskedLM

from a2d_ray import convert
from a2d_ray.config import TrainConfig
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.export.sdar import export_sdar
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.generation.reference import sample
from a2d_ray.models.architectures import Architecture
from a2d_ray.models.checkpoint import load_checkpoint, save_checkpoint
from a2d_ray.planning.sizes import find_sizes
from a2d_ray.proving.laws import LAWS
from a2d_ray.proving.tiny import tiny_config
from a2d_ray.training.optim import make_optimizer
from tests.closeness import assert_close
from tests.rows import packed_row
from tests.tiny import tiny_tokenizer
from tests.training.modules import module_of
from tests.training.runs import assert_same_losses, fit, metrics

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(600)]
FAMILIES = ("gpt2", "gemma2", "phi3", "qwen3_moe", "deepseek_v3", "cohere2")
SPEC = LayoutSpec(objective="bd3lm", block_size=4)
PROMPT = [[5, 6, 8, 9, 10], [11, 12]]


def save_ar(directory, model_type):
    """A random AR checkpoint of a family, as transformers saves it, with a tokenizer."""
    architecture = Architecture.of(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.ar_model_class(tiny_config(model_type))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family, its AR model, and where its A2D checkpoint lies."""
    root = tmp_path_factory.mktemp(request.param)
    model = save_ar(root / "ar", request.param)
    return request.param, model, convert(str(root / "ar"), root / "a2d")


def load(directory):
    return load_checkpoint(directory, dtype=torch.float32, device="cpu")


def test_a_conversion_computes_what_the_ar_model_does_and_records_its_proof(family):
    name, ar_model, directory = family
    checkpoint = load(directory)
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        logits, expected = checkpoint.model(ids, attention_mask=causal).logits, ar_model(ids).logits
    mask_id = checkpoint.contract.mask_token_id
    logits[..., mask_id] = expected[..., mask_id]
    assert_close(logits, expected)
    proof = checkpoint.contract.proof
    assert proof.family == name and proof.laws == tuple(law.name for law in LAWS)
    assert find_sizes(str(directory)).parameters == sum(
        p.numel() for p in checkpoint.model.parameters()
    )


def test_plain_transformers_loads_the_checkpoint(family):
    checkpoint = load(family[2])
    plain = AutoModelForMaskedLM.from_pretrained(
        family[2], trust_remote_code=True, dtype=torch.float32
    ).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, checkpoint.model(ids).logits)


def train(module, optimizer, steps):
    losses = []
    for step in steps:
        row = packed_row([(step, [(6, False), (9, True)], True)], vocab=250, seed=step)
        layout = build_layout([row], SPEC)
        noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=torch.zeros(1, dtype=torch.int64))
        sums = module(layout, noise)
        optimizer.zero_grad()
        (sums.loss / sums.num_targets).backward()
        optimizer.step()
        losses.append(sums.loss.item())
    return losses


def test_training_goes_on_from_a_checkpoint_and_the_engine_decodes_it(family, tmp_path):
    directory = family[2]
    checkpoint = load(directory)
    module = module_of(checkpoint.model.train())
    optim = TrainConfig.model_fields["optim"].annotation(lr=1e-3)
    optimizer = make_optimizer(module, optim)
    losses = train(module, optimizer, range(4))
    assert all(map(math.isfinite, losses))
    contract = checkpoint.contract.model_copy(update={"objective": "bd3lm", "block_size": 4})
    save_checkpoint(tmp_path / "trained", model=checkpoint.model, tokenizer=None, contract=contract)
    again = load(tmp_path / "trained")
    assert again.contract.proof == checkpoint.contract.proof
    resumed = make_optimizer(module_of(again.model.train()), optim)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = train(module, optimizer, range(4, 6))
    assert_close(train(module_of(again.model), resumed, range(4, 6)), expected)
    model = load(tmp_path / "trained").model
    engine = Engine(
        model, contract, eos_ids={2}, max_length=128, options=EngineOptions(kv_tokens=256)
    )
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    engine.add_request(Request(request_id="a", prompt=PROMPT, params=params))
    tokens = []
    while engine.has_unfinished():
        tokens += [i for output in engine.step() for i in output.token_ids]

    def forward(ids_T, mask_TT):
        return model(ids_T[None], attention_mask=mask_TT[None, None]).logits[0]

    assert tokens == sample(forward, PROMPT, params, contract, eos_ids={2}).token_ids


def test_export_refuses_the_family_by_name(family, tmp_path):
    with pytest.raises(ValueError, match=f"its architecture is a2d-{family[0]}: SDAR is Qwen3"):
        export_sdar(family[2], tmp_path / "sdar", prompts=["a"], device="cpu")
    assert not (tmp_path / "sdar").exists()


@pytest.mark.cluster
def test_zero_2_on_two_workers_and_a_resume(ray_local, tmp_path):
    name = "qwen3_moe"  # experts, whose router has a loss of its own
    save_ar(tmp_path / "ar", name)
    convert(str(tmp_path / "ar"), tmp_path / "a2d")
    rows = [{"prompt": f"say {i}", "completion": f"ok {i} " * (i % 4 + 1)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def config(run, **schedule):
        return TrainConfig.model_validate(
            {
                "run": {"storage_path": str(tmp_path / "runs"), **run},
                "model": {"path": str(tmp_path / "a2d"), "dtype": "float32"},
                "data": {
                    "spec": str(tmp_path / "rows.jsonl"),
                    "packed_path": str(tmp_path / "packed"),
                    "max_length": 96,
                    "tokens_per_row": 192,
                },
                "objective": {
                    "name": "bd3lm",
                    "block_size": 4,
                    "router_loss_weight": 0.01,
                },
                "batch": {"rows": 2},
                "schedule": {"max_steps": 4, "eval_steps": 0, "save_steps": 2, **schedule},
                "scaling": {"num_workers": 2, "max_failures": 0},
                "deepspeed": {"zero_optimization": {"stage": 2}},
            }
        )

    fit(config({"name": "whole"}))
    fit(config({"name": "stopped"}, max_duration=1))
    fit(config({"name": "stopped", "resume": True}))
    whole, stopped = (metrics(tmp_path, name)[0] for name in ("whole", "stopped"))
    assert_same_losses(stopped, whole, rel=1e-5)
