"""Every family of the list holds the laws; what cannot is refused with its reason."""

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from a2d_ray.config import LoraSection
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.export.refusals import sdar_refusals
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, Request
from a2d_ray.models.architectures import Architecture
from a2d_ray.models.contract import Contract
from a2d_ray.models.experts import balance_loss
from a2d_ray.models.families import RECURRENT_FAMILIES, bidirectional_values, find_family
from a2d_ray.models.gated_lora import add_gated_adapters, settle_mask_row
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.miniature import MASK_ID, make_miniature, small_values
from a2d_ray.models.parts import layers_of
from a2d_ray.proving import table
from a2d_ray.proving.laws import LAWS
from a2d_ray.proving.proof import format_proof, prove
from a2d_ray.proving.tiny import FAMILIES, tiny_config
from tests.rows import packed_row

SPEC = LayoutSpec(objective="bd3lm", block_size=4)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_holds_the_laws(model_type):
    proof = prove(Architecture.of(model_type), tiny_config(model_type))
    assert proof.failure is None, format_proof(proof)
    assert [result.law for result in proof.results] == [*LAWS]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_export_takes_a_family_or_says_why_not(tmp_path, model_type):
    """Trained as SDAR's servers decode, the architecture is all that may stand in the way."""
    (tmp_path / "tokenizer.json").touch()
    trained = Contract(mask_token_id=MASK_ID, objective="bd3lm", block_grid="absolute")
    config = {"model_type": Architecture.of(model_type).model_type}
    reasons = sdar_refusals(tmp_path, config, trained, has_objective=True)
    wanted = f"its architecture is a2d-{model_type}: SDAR is Qwen3"
    assert [reason[: len(wanted)] for reason in reasons] == [wanted] * (model_type != "qwen3")


def test_the_families_that_users_ask_for_are_in_the_list():
    asked = (
        "mistral ministral mixtral gemma gemma2 gemma3_text phi3 smollm3 granite qwen2_moe "
        "qwen3_moe olmo olmo3 olmoe glm4 cohere2 starcoder2 gpt_neox gpt2 stablelm deepseek_v3 "
        "gpt_oss nemotron exaone4"
    )
    assert {*asked.split()} <= {*FAMILIES}
    assert len(FAMILIES) >= 40


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba", "recurrent layers, whose state runs from left to right"),
        ("jamba", "recurrent layers"),
        ("qwen3_next", "recurrent layers"),
        ("lfm2", r"recurrent layers \(conv\)"),
        ("deepseek_v32", "an indexer picks the keys"),
        ("bert", "an encoder"),
        ("bart", "encoder-decoder"),
        ("gemma3", "multimodal"),
        ("vit", "no causal language model of type 'vit'"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_reason(model_type, reason):
    config = {"model_type": model_type}
    if model_type == "lfm2":
        config |= {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
    with pytest.raises(ValueError, match=f"'{model_type}', which is not supported.*{reason}"):
        find_family("somebody's", config)


@pytest.mark.parametrize("model_type", ["gptj", "falcon"])
def test_layers_that_do_not_ask_the_registry_fail_the_first_law(model_type):
    config = tiny_config(model_type, **({"rotary_dim": 4} if model_type == "gptj" else {}))
    failed = prove(Architecture.of(model_type), config, laws=LAWS[:2]).failure
    assert failed.law.name == "registry" and failed.difference == 1.0


def test_a_mask_that_a_family_makes_itself_fails_the_law_of_documents():
    laws = [law for law in LAWS if law.name in ("registry", "ar logits", "documents")]
    failed = prove(Architecture.of("doge"), tiny_config("doge"), laws=laws).failure
    assert failed.law.name == "documents"


REFUSED_AT_ONCE = {
    "mamba": ({}, "it has recurrent layers, whose state"),
    "bert": ({"type_vocab_size": 2}, "it is an encoder"),
    "bart": ({"is_encoder_decoder": True}, "it is an encoder-decoder model"),
    "gemma3": ({"text_config": {}}, "it is multimodal"),
    "new": ({"layer_types": ["conv"]}, "it has recurrent layers (conv)"),
}


def test_what_config_json_says_is_refused_before_transformers_is_imported(tmp_path):
    """By the job, in the seconds that were promised."""
    for model_type, (config, reason) in REFUSED_AT_ONCE.items():
        text = f"{model_type!r}, which is not supported: {reason}"
        with pytest.raises(ValueError, match=re.escape(text)):
            find_family("somebody's", config | {"model_type": model_type})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path('jobs/convert.py', run_name='__main__')\n"
        "finally: print(*{'torch', 'transformers', 'ray'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, f"source={tmp_path}", f"output={tmp_path}/a2d"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and REFUSED_AT_ONCE["mamba"][1] in result.stderr
    assert result.stdout.strip() == ""
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5


def test_the_recurrent_families_are_those_of_transformers():
    """As its sources say, which are not imported here."""
    models = Path(transformers.__file__).parent / "models"
    sources = models.glob("*/modeling_*.py")
    stateful = {file.parent.name for file in sources if "_is_stateful = True" in file.read_text()}
    found = {
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name.replace("-", "_").removesuffix("_text") in stateful
    }
    assert found == RECURRENT_FAMILIES


def test_a_law_that_does_not_hold_is_named_with_its_difference():
    def spoiled(mini):
        """The AR law, where one layer of the two models differs."""
        layers_of(mini.a2d)[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(64, 32))
        return LAWS[1].difference(mini)

    law = replace(LAWS[1], difference=spoiled)
    proof = prove(Architecture.of("mistral"), tiny_config("mistral"), laws=[law, LAWS[2]])
    assert proof.failure is proof.results[0] and proof.failure.difference > 0.01
    with pytest.raises(
        ValueError, match=r"the law 'ar logits' \(under a causal.*difference is 0\."
    ):
        proof.check("somebody's")
    assert "no" in format_proof(proof).splitlines()[1]


def test_a_law_that_ends_with_an_error_does_not_hold():
    def broken(mini):
        raise KeyError("a family's own code")

    law = replace(LAWS[0], difference=broken)
    proof = prove(Architecture.of("mistral"), tiny_config("mistral"), laws=[law])
    with pytest.raises(ValueError, match='ended with KeyError: "a family\'s own code"'):
        proof.check("somebody's")


def test_windows_and_dropout_are_dropped_whatever_key_hides_them():
    values = {
        "max_position_embeddings": 4096,
        "sliding_window": 128,
        "attention_chunk_size": 512,
        "layer_types": ["sliding_attention", "chunked_attention", "full_attention"],
        "attn_pdrop": 0.1,
        "hidden_dropout": 0.2,
        "attention_dropout": 0.0,
    }
    new, notes = bidirectional_values(values)
    assert new["sliding_window"] == new["attention_chunk_size"] == 4096
    assert new["layer_types"] == values["layer_types"]
    assert new["attn_pdrop"] == new["hidden_dropout"] == 0.0
    assert [note.partition(" (")[0] for note in notes] == [
        "attends within windows",
        "was trained with dropout",
    ]
    assert "sliding_window=128, attention_chunk_size=512" in notes[0]
    assert bidirectional_values({"sliding_window": 8, "layer_types": ["full_attention"]})[1] == []
    assert bidirectional_values({"sliding_window": 8, "use_sliding_window": False})[1] == []


def test_a_miniature_keeps_attention_and_every_kind_of_layer():
    config = transformers.Gemma3TextConfig()
    values = small_values(config)
    assert values["hidden_size"] == config.hidden_size
    assert values["num_hidden_layers"] == 6  # five windows, then one without
    assert values["layer_types"] == config.layer_types[:6]
    assert values["vocab_size"] == 320 and values["intermediate_size"] == 64


@pytest.mark.slow
@pytest.mark.nightly
def test_a_proof_of_seven_billions_fits_and_ends():
    """In a process of its own, whose memory is measured."""
    code = (
        "import resource, time; from transformers import MistralConfig;"
        "from a2d_ray.models.architectures import Architecture;"
        "from a2d_ray.proving.proof import prove;"
        "started = time.process_time();"
        "assert prove(Architecture.of('mistral'), MistralConfig()).failure is None;"
        "print(time.process_time() - started,"
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seconds, gib = map(float, result.stdout.split())
    assert seconds < 60 and gib < 4


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_balance_of_experts_is_that_of_transformers(model_type):
    """Over the tokens of a layout; and a router learns from it."""
    mini = make_miniature(Architecture.of(model_type), tiny_config(model_type))
    layout = build_layout([packed_row([(1, [(6, False), (9, True)], True)])], SPEC)
    routed = []
    layout_hidden(mini.a2d, layout.ids_RT, layout, False, routed)
    balance = balance_loss(mini.a2d, routed)
    assert len(routed) == mini.a2d.config.num_hidden_layers
    config, module = mini.ar.config, sys.modules[type(mini.ar).__module__]
    expected = module.load_balancing_loss_func(
        tuple(routed), config.num_local_experts, config.num_experts_per_tok
    )
    assert balance == expected and balance > 0.9
    router = next(p for n, p in mini.a2d.named_parameters() if "gate.weight" in n or "router" in n)
    (gradient,) = torch.autograd.grad(balance, router)
    assert gradient.abs().max() > 0


@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_gated_adapters_of_transposed_layers_leave_the_ar_mode_as_it_was():
    model = make_miniature(Architecture.of("gpt2"), tiny_config("gpt2")).a2d
    contract = Contract(mask_token_id=MASK_ID, ar_mode="original")

    def answer():
        engine = Engine(model, contract, eos_ids={2}, max_length=64)
        params = SamplingParams(max_new_tokens=12, rule="ar", ignore_eos=True)
        engine.add_request(Request(request_id="a", prompt=[[5, 6, 7]], params=params))
        return [i for _ in iter(engine.has_unfinished, False) for i in engine.step()[0].token_ids]

    expected = answer()
    add_gated_adapters(model, LoraSection(r=2, noised_only=True), mask_id=MASK_ID, base="gpt2")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    settle_mask_row(model)
    assert answer() == expected and len(expected) == 12


def test_the_table_names_the_families():
    page = table.PAGE.read_text()
    rows = page.split(table.BEGIN)[1].split(table.END)[0].splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [*FAMILIES]


@pytest.mark.slow
@pytest.mark.nightly
def test_the_table_is_current():
    """The laws are other tests' business; here the other columns are made again."""
    page = table.PAGE.read_text()
    rows = [table.family_row(model_type, num_held=len(LAWS)) for model_type in FAMILIES]
    assert table.written(page, rows) == page
