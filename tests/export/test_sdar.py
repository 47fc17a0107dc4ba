"""A checkpoint in SDAR's format: decoded there as here, read back as it was, or refused."""

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from a2d_ray import SamplingParams, convert, load
from a2d_ray.export.probe import check_mask_is_quiet
from a2d_ray.export.sdar import export_sdar
from a2d_ray.models.checkpoint import save_checkpoint
from a2d_ray.models.contract import Contract
from tests.commands import ROOT
from tests.tiny import save_tiny_ar, tiny_a2d_model, tiny_tokenizer

MASK_ID = 259  # of the tiny tokenizer with a mask token
THRESHOLD = 0.5
PROMPTS = ["Hi", "What is 7 + 5?", "Größe"]
TRAINED = {
    "objective": "bd3lm",
    "mask_token_id": MASK_ID,
    "block_size": 4,
    "block_sizes": (4,),
    "block_grid": "absolute",
}


def save_trained(directory, architecture="qwen3", contract=(), **sizes):
    """A tiny checkpoint as training would leave it: sure of its tokens."""
    model = tiny_a2d_model(architecture, **sizes)
    model.model.norm.weight.data *= 8
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    contract = Contract.model_validate(TRAINED | dict(contract))
    save_checkpoint(directory, model=model, tokenizer=tokenizer, contract=contract)
    return str(directory)


def export(source, output, **options):
    options = {"mask_id": MASK_ID, "threshold": THRESHOLD, "dtype": "float32"} | options
    return export_sdar(source, output, prompts=PROMPTS, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_trained(tmp_path_factory.mktemp("trained") / "a2d")


@pytest.fixture(scope="module")
def sdar_answer():
    """The loop that docs/interop.md shows: SDAR's decoding without a line of ours."""
    page = (ROOT / "docs/interop.md").read_text()
    code = re.search(r"<!-- sdar loop -->\n```python\n(.*?)```", page, re.S)[1]
    assert code.count("\n") <= 55 and "a2d_ray" not in code
    names = {}
    exec(code, names)
    return lambda directory, prompts, *options: [
        names["sdar_answer"](loaded, prompt, *options)
        for loaded in [names["load_sdar"](directory)]
        for prompt in prompts
    ]


def engine_answers(directory, prompts, num_tokens, block_size=None):
    params = SamplingParams(
        max_new_tokens=num_tokens,
        rule="threshold",
        threshold=THRESHOLD,
        block_size=block_size,
        ignore_eos=True,
    )
    lm = load(directory, dtype="float32", device="cpu")
    return [answer.token_ids for answer in lm.generate(prompts, params)]


@pytest.mark.parametrize(
    ("sizes", "contract", "options"),
    [
        ({"tie_word_embeddings": True}, {}, {}),
        ({"tie_word_embeddings": False}, {}, {}),
        ({}, {}, {"mask_id": 300}),
        ({"vocab_size": 260}, {}, {"mask_id": 290}),
        ({"vocab_size": 151936, "hidden_size": 16}, {}, {"mask_id": 151669}),
        ({}, {"block_size": 8, "block_sizes": (4, 8)}, {"block_size": 4}),
    ],
    ids=["tied", "untied", "moved", "grown", "their mask id", "one block size of two"],
)
def test_sdars_loop_and_our_engine_give_the_same_tokens_there_and_back(
    tmp_path, sdar_answer, sizes, contract, options
):
    source = save_trained(tmp_path / "a2d", contract=contract, **sizes)
    done = export(source, tmp_path / "sdar", **options)
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 8, 11)  # before, at and behind a block's edge
    prompts = [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]
    expected = engine_answers(source, prompts, 11, done.block_size)
    assert len({tuple(answer) for answer in expected}) > 1
    assert sdar_answer(tmp_path / "sdar", prompts, 11, THRESHOLD) == expected
    back = convert(str(tmp_path / "sdar"), tmp_path / "back")
    assert engine_answers(back, prompts, 11) == expected

    held = load(back, dtype="float32", device="cpu")
    mask_id = options.get("mask_id", MASK_ID)
    assert (held.contract.mask_token_id, held.contract.block_size) == (mask_id, 4)
    assert done.mask_probability < 1e-3 and done.num_rows % 64 == 0
    assert held.eos_token_ids == {0, 2}  # the source's, and Qwen's
    words = "\n".join(done.commands())
    assert ("sglang.launch_server" in words and "lmdeploy" in words) == (mask_id == 151669)


def test_the_mask_has_its_input_row_and_no_say_in_the_head(tmp_path, trained):
    export(trained, tmp_path / "sdar", mask_id=300)
    before = load_file(f"{trained}/model.safetensors")
    after = load_file(tmp_path / "sdar" / "model.safetensors")
    rows, head = (after[f"{name}.weight"] for name in ("model.embed_tokens", "lm_head"))
    table = before["model.embed_tokens.weight"]
    assert torch.equal(rows[300], table[MASK_ID])
    assert not head[300].any() and not head[MASK_ID].any()
    kept = [i for i in range(len(table)) if i not in (MASK_ID, 300)]
    assert torch.equal(head[kept], table[kept])


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated")  # the name of version 4
def test_plain_transformers_reads_the_configuration(tmp_path):
    rope = {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    source = save_trained(tmp_path / "a2d", rope_parameters=rope)
    export(source, tmp_path / "sdar")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "sdar", trust_remote_code=True)
    assert (config.model_type, config.block_size, config.mask_token_id) == ("sdar", 4, MASK_ID)
    assert config.rope_theta == 5e5  # where SDAR's model files read it
    assert config.rope_scaling | {"rope_theta": 5e5} == rope
    assert config.architectures == ["SDARForCausalLM"] and not config.tie_word_embeddings
    values = json.loads((tmp_path / "sdar" / "config.json").read_text())
    assert "rope_parameters" not in values  # the form of transformers 4
    assert values["torch_dtype"] == "float32" and values["head_dim"] == 8
    decoding = (tmp_path / "sdar" / "dllm.yaml").read_text()
    assert decoding == f"block_size: 4\nthreshold: {THRESHOLD}\n"


@pytest.mark.parametrize(
    ("contract", "options", "reasons"),
    [
        ({"objective": None}, {}, ["converted but not trained"]),
        ({"objective": "mdlm"}, {}, ["objective is mdlm"]),
        ({"block_grid": "segment"}, {}, ["objective.block_grid=absolute"]),
        ({"block_grid": "prompt_end"}, {}, ["block_grid=prompt_end"]),
        (
            {"block_grid": "segment", "clean_attention": "causal", "right_shift_logits": True},
            {"mask_id": 2},
            [
                "objective.block_grid=absolute",
                "objective.clean_attention=block",
                "objective.right_shift_logits=false",
                "id 2, which these servers take for the mask, is the token '<|im_end|>'",
            ],
        ),
        ({"gated_adapters": {"noised_only": True}}, {}, ["gated adapters"]),
        ({"objective": "mdlm"}, {"objective": "bd3lm"}, ["says objective=mdlm"]),
        ({}, {"mask_token_id": 4}, ["says mask_token_id=259"]),
        ({}, {"mask_id": 151669}, ["beyond its 320 rows", "mask_id=259 keeps its own"]),
    ],
    ids=lambda value: ", ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_they_would_decode_otherwise_is_refused_with_all_reasons(
    tmp_path, trained, contract, options, reasons
):
    source = shutil.copytree(trained, tmp_path / "a2d")
    path = source / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"a2d": values["a2d"] | contract}))
    with pytest.raises(ValueError, match="cannot be exported") as error:
        export(str(source), tmp_path / "sdar", **options)
    assert all(reason in str(error.value) for reason in reasons), error.value
    assert not (tmp_path / "sdar").exists()


def test_other_models_and_untrained_sizes_are_refused(tmp_path, trained):
    llama = save_trained(tmp_path / "llama", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "llama" / name).unlink()
    (tmp_path / "llama" / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    with pytest.raises(ValueError, match="a2d-llama: SDAR is Qwen3") as error:
        export(llama, tmp_path / "sdar")
    assert "jobs/merge_lora.py" in str(error.value) and "no tokenizer" in str(error.value)
    with pytest.raises(ValueError, match=r"block_size \(8\) was not trained"):
        export(trained, tmp_path / "sdar", block_size=8)
    with pytest.raises(ValueError, match="convert it first"):
        export(str(save_tiny_ar(tmp_path / "ar", "qwen3")), tmp_path / "sdar")


def test_a_public_checkpoint_goes_out_on_its_training_grid(tmp_path, trained):
    source = shutil.copytree(trained, tmp_path / "public")
    path = source / "config.json"
    values = json.loads(path.read_text())
    del values["a2d"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"no contract: say model\.objective=bd3lm"):
        export(str(source), tmp_path / "sdar")
    done = export(str(source), tmp_path / "sdar", objective="bd3lm", block_size=4)
    assert done.block_size == 4


def test_a_loud_mask_token_is_found(tmp_path):
    model = tiny_a2d_model("qwen3", tie_word_embeddings=False)
    model.model.embed_tokens.weight.data[:, 0] = 8  # one direction that all hidden states share
    model.lm_head.weight.data[:, 0] = -4  # and that pulls every logit down, as softmax allows
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    contract = Contract.model_validate(TRAINED)
    save_checkpoint(tmp_path / "a2d", model=model, tokenizer=tokenizer, contract=contract)
    with pytest.raises(ValueError, match=r"probability reaches 0\.\d+ at a masked place|reaches 1"):
        export(str(tmp_path / "a2d"), tmp_path / "sdar")
    assert not (tmp_path / "sdar").exists()
    quiet = {"mask_id": MASK_ID, "block_size": 4, "threshold": 0.5}
    model.lm_head.weight.data[MASK_ID, 0] = -8  # quieter than all others
    assert check_mask_is_quiet(model, [[5, 6, 7]], **quiet) < 1e-3
