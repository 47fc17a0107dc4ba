"""The Python API on a tiny converted model."""

import pytest
import torch

from a2d_ray import SamplingParams, convert, load
from tests.tiny import save_tiny_ar, tiny_ar_model

TERMS = {"objective": "bd3lm", "block_size": 4, "block_grid": "segment"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    convert(str(save_tiny_ar(root / "ar")), root / "a2d")
    return root / "a2d"


@pytest.fixture(scope="module")
def lm(path):
    return load(path, dtype="float32", device="cpu", **TERMS)


PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


def test_texts_chats_and_ids_give_answers(lm):
    chat = [{"role": "user", "content": "hello"}]
    ids = lm.tokenizer("hello").input_ids
    text, same, talk = lm.generate(["hello", ids, chat], PARAMS)
    assert text == same and len(text.token_ids) == 12 and text.finish_reason == "length"
    assert text.text == lm.tokenizer.decode(text.token_ids, skip_special_tokens=True)
    assert talk.token_ids != text.token_ids
    assert lm.generate("hello", PARAMS) == lm.generate(["hello"], PARAMS) == [text]
    assert lm.generate(chat, PARAMS) == [talk] and lm.generate(ids, PARAMS) == [text]
    assert lm.generate([], PARAMS) == []


def test_batch_equals_alone_and_stream_equals_whole(lm):
    prompts = ["one", "another prompt", "x"]
    together = lm.generate(prompts, PARAMS)
    assert together == [lm.generate(p, PARAMS)[0] for p in prompts]
    chunks = list(lm.stream("one", PARAMS))
    assert "".join(c.text for c in chunks) == together[0].text
    assert [i for c in chunks for i in c.token_ids] == together[0].token_ids
    assert chunks[-1].finish_reason == "length" and chunks[-1].num_forwards == len(chunks)


def test_stop_text_cuts_the_answer(lm):
    params = SamplingParams(max_new_tokens=60, temperature=2.0, seed=1, ignore_eos=True)
    (whole,) = lm.generate("hello", params)
    stop = whole.text[8:10]
    (cut,) = lm.generate("hello", SamplingParams(**{**vars(params), "stop": stop}))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.num_forwards < whole.num_forwards


def test_end_of_turn_ends_the_answer_and_is_not_part_of_it(lm):
    eos = lm.tokenizer.eos_token_id
    answers = lm.generate(
        ["a", "b", "c"], SamplingParams(max_new_tokens=400, temperature=3.0, threshold=0.0, seed=2)
    )
    assert {a.finish_reason for a in answers} == {"stop"}
    assert all(eos not in a.token_ids for a in answers)


def test_seed_decides_the_text(lm):
    def text(seed):
        params = SamplingParams(max_new_tokens=16, temperature=1.0, seed=seed, ignore_eos=True)
        return lm.generate("hello", params)[0].token_ids

    assert text(1) == text(1) != text(2)


def test_a_directory_without_contract_or_tokenizer_takes_token_ids(tmp_path):
    from a2d_ray.models.architectures import find_architecture

    row = find_architecture("llama")
    values = tiny_ar_model().config.to_diff_dict() | {"model_type": row.model_type}
    row.model_class(row.config_class(**values)).save_pretrained(tmp_path)
    lm = load(tmp_path, dtype="float32", device="cpu", mask_token_id=300, **TERMS)
    assert lm.tokenizer is None and lm.contract.mask_token_id == 300
    (answer,) = lm.generate([[5, 6, 7]], PARAMS)
    assert len(answer.token_ids) == 12 and answer.text == ""
    with pytest.raises(ValueError, match="token ids"):
        lm.generate(["text"], PARAMS)
    with pytest.raises(ValueError, match="stop_token_ids"):
        lm.generate([[5]], SamplingParams(stop="x"))


def test_mdlm_generates_too(path):
    lm = load(path, dtype="float32", device="cpu", objective="mdlm", block_size=8)
    (answer,) = lm.generate(["hello"], SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert len(answer.token_ids) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda:99"}, "cuda"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int3"}, "int3"),
    ],
)
def test_load_refuses_bad_arguments(path, arguments, message):
    if torch.cuda.is_available() and "cuda" in str(arguments):
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        load(path, **arguments)


def test_untrained_model_says_what_to_do(path):
    with pytest.raises(ValueError, match="objective='bd3lm'"):
        load(path, dtype="float32", device="cpu").generate(["x"])


@pytest.mark.parametrize("prompt", [1.5, ["a"], None, [[5], "a"]])
def test_things_that_are_no_prompt(lm, prompt):
    with pytest.raises(ValueError, match="a prompt is"):
        lm.generate([prompt], PARAMS)
