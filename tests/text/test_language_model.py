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


def test_a_kept_engine_reads_only_what_is_new_and_outlives_what_is_broken_off(lm):
    engine, turns = lm.make_engine(), [{"role": "user", "content": "a rather long question"}]
    broken_off = lm.stream(turns, PARAMS, engine=engine)
    next(broken_off)
    broken_off.close()
    assert not engine.has_unfinished() and engine.num_used_kv_tokens == 0
    for question in ("second", "third"):
        chunks = list(lm.stream(turns, PARAMS, engine=engine))
        (alone,) = lm.generate([turns], PARAMS)
        assert [i for chunk in chunks for i in chunk.token_ids] == alone.token_ids
        turns += [{"role": "assistant", "content": alone.text}]
        turns += [{"role": "user", "content": question}]
    before, fresh = engine.num_positions, lm.make_engine()
    for each in (engine, fresh):
        list(lm.stream(turns, PARAMS, engine=each))
    assert engine.num_positions - before < fresh.num_positions


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


def test_choices_of_a_prompt_stand_in_a_row(lm):
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    one, two = lm.generate(["a", "b"], SamplingParams(**options))
    found = lm.generate(["a", "b"], SamplingParams(**options, n=3))
    assert [g.choice for g in found] == [0, 1, 2] * 2
    assert found[0] == one and found[3] == two
    assert len({tuple(g.token_ids) for g in found}) == 6
    with pytest.raises(ValueError, match="n \\(3\\)"):
        next(lm.stream("a", SamplingParams(n=3)))


def test_logprobs_when_asked_for_and_cut_with_the_text(lm):
    options = {"max_new_tokens": 40, "temperature": 2.0, "seed": 1, "ignore_eos": True}
    (plain,) = lm.generate("hello", SamplingParams(**options))
    (whole,) = lm.generate("hello", SamplingParams(**options, logprobs=2))
    assert plain.logprobs is None and whole.token_ids == plain.token_ids
    assert [entry.token_id for entry in whole.logprobs] == whole.token_ids
    assert all(entry.logprob <= 0 and len(entry.top) == 2 for entry in whole.logprobs)
    stop = whole.text[8:10]
    (cut,) = lm.generate("hello", SamplingParams(**options, logprobs=2, stop=stop))
    assert cut.logprobs == whole.logprobs[: len(cut.token_ids)]
    chunks = list(lm.stream("hello", SamplingParams(**options, logprobs=2)))
    assert [entry for chunk in chunks for entry in chunk.logprobs] == whole.logprobs


@pytest.mark.parametrize("objective", ["bd3lm", "mdlm"])
def test_infill_keeps_the_text_around_the_holes(path, objective):
    lm = load(path, dtype="float32", device="cpu", **TERMS | {"objective": objective})
    by_text, by_ids = lm.infill([["ab", 3, "cd"], ["x", 1]])
    before, after = (lm.tokenizer(t).input_ids for t in ("ab", "cd"))
    assert by_text.token_ids[:2] == before and by_text.token_ids[5:] == after
    assert by_text.text.startswith("ab") and by_text.text.endswith("cd")
    assert by_ids.token_ids[:1] == lm.tokenizer("x").input_ids and len(by_ids.token_ids) == 2
    assert lm.infill([[*before, None, None, None, *after]]) == [by_text]
    assert lm.infill([[[*before, None], [None, None, *after]]])[0].token_ids[:2] == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["ab"], "no holes"),
        ([5, 6], "no holes"),
        (["ab", 0], "at least 1"),
        (["ab", None], "at least 1"),
        ([[5, None], "x"], "a hole is"),
        ([5, None, 1.5], "token ids and None"),
    ],
)
def test_things_that_cannot_be_filled_in(lm, text, message):
    with pytest.raises(ValueError, match=message):
        lm.infill([text])


def test_guidance_changes_answers_unless_both_branches_see_the_prompt(lm):
    params = PARAMS.model_copy(update={"cfg_scale": 1.0, "n": 2, "temperature": 1.0})
    first, second = lm.generate("hello", params)
    assert first.token_ids != second.token_ids
    kept = params.model_copy(update={"cfg_keep_tokens": tuple(lm.tokenizer("hello").input_ids)})
    plain = lm.generate("hello", params.model_copy(update={"cfg_scale": 0.0}))
    assert [g.text for g in lm.generate("hello", kept)] == [g.text for g in plain]
    with pytest.raises(ValueError, match="positions"):
        lm.generate("x" * 600, params)


def test_a_grammar_for_every_answer(lm):
    class OnlyEven:
        def allowed(self):
            is_allowed = torch.zeros(320, dtype=torch.bool)
            is_allowed[::2] = True
            return is_allowed

        def accept(self, token_id):
            return token_id % 2 == 0

    params = SamplingParams(max_new_tokens=12, rule="prefix", threshold=0.0, temperature=1.0, n=2)
    for answer in lm.generate(["a", "b"], params, grammar=OnlyEven):
        assert all(token % 2 == 0 for token in answer.token_ids)


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
    untrained = load(path, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="objective='bd3lm'"):
        untrained.generate(["x"], SamplingParams(rule="threshold"))
    assert untrained.generate(["x"], SamplingParams(max_new_tokens=4))  # by its AR mode


@pytest.mark.parametrize("prompt", [1.5, ["a"], None, [[5], "a"]])
def test_things_that_are_no_prompt(lm, prompt):
    with pytest.raises(ValueError, match="a prompt is"):
        lm.generate([prompt], PARAMS)


@pytest.mark.parametrize("rule", ["threshold", "steps", "prefix", "ar", "speculate"])
def test_equal_prompts_are_drawn_apart_and_the_first_as_if_alone(lm, rule):
    params = SamplingParams(temperature=1.0, max_new_tokens=12, rule=rule, ignore_eos=True)
    chat = [{"role": "user", "content": "hi"}]
    answers = lm.generate([chat] * 8, params)
    assert len({answer.text for answer in answers}) == 8
    assert answers[0].text == lm.generate([chat], params)[0].text
    assert [a.text for a in answers] == [a.text for a in lm.generate([chat] * 8, params)]
