"""One think block per answer, whatever the template, the row and the options say."""

import json

import pytest

from a2d_ray.config import OptionError
from a2d_ray.data.chat import ChatRenderer, check_template_options, frame, render_prompt
from a2d_ray.data.packing.tokenizing import tokenize_rows
from a2d_ray.data.thoughts import apart, split_thought, with_thought
from a2d_ray.models.checkpoint import load_checkpoint, save_checkpoint
from a2d_ray.models.contract import Contract
from a2d_ray.models.fingerprint import tokenizer_hash
from a2d_ray.models.tokenizers import template_options, with_template_options
from tests.data.test_chat import THINKING_TEMPLATE
from tests.data.test_tokenizing import recipe, rows_table
from tests.tiny import tiny_a2d_model, tiny_tokenizer

BLOCK = "<think>\nR\n</think>\n\n"
EMPTY = "<think>\n\n</think>\n\n"
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
    "{{ '<a>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a><think>\\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% set c = m.content %}{% set r = '' %}"
    "{% if m.reasoning_content is string %}{% set r = m.reasoning_content %}"
    "{% elif '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and (loop.last or r) %}"
    "{{ '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
CHATML = tiny_tokenizer().chat_template
ON = {"enable_thinking": True}
Q = {"role": "user", "content": "q"}


def tokenizer(template):
    found = tiny_tokenizer()
    found.chat_template = template
    return found


def pieces_of(template, answer, options=None):
    messages = [apart(m) for m in (Q, {"role": "assistant", "content": answer})]
    return [p.text for p in ChatRenderer(tokenizer(template), options or {}).render(messages)]


@pytest.mark.parametrize(
    ("template", "options", "answer", "expected"),
    [
        (QWEN3, {}, "a", "a"),
        (QWEN3, {}, BLOCK + "a", "a"),
        (QWEN3, ON, "a", EMPTY + "a"),
        (QWEN3, ON, BLOCK + "a", BLOCK + "a"),
        (THINKING_TEMPLATE, {}, BLOCK + "a", "a"),
        (THINKING_TEMPLATE, ON, BLOCK + "a", BLOCK + "a"),
        (R1, {}, "a", "\n</think>\n\na"),
        (R1, {}, BLOCK + "a", "R\n</think>\n\na"),
        (R1, {}, "R\n</think>\n\na", "R\n</think>\n\na"),
        (CHATML, {}, "a", "a"),
        (CHATML, {}, BLOCK + "a", BLOCK + "a"),
    ],
)
def test_prompt_and_answer_hold_one_think_block(template, options, answer, expected):
    prompt, found = pieces_of(template, answer, options)
    assert found == expected + "<|im_end|>"
    assert (prompt + found).count("</think>") <= 1


@pytest.mark.parametrize("template", [QWEN3, THINKING_TEMPLATE, R1, CHATML])
@pytest.mark.parametrize("options", [{}, ON])
@pytest.mark.parametrize("answer", ["a", BLOCK + "a"])
def test_a_prompt_has_the_segments_of_the_training_document(template, options, answer):
    tok = with_template_options(tokenizer(template), options)
    chat = [Q, {"role": "assistant", "content": answer}, {"role": "user", "content": "r"}]
    whole = ChatRenderer(tok).render([apart(m) for m in [*chat, chat[1]]])
    prompt = render_prompt(chat, tok)
    assert [tok.decode(ids) for ids in prompt] == [piece.text for piece in whole[:3]]
    field = {"role": "assistant", "content": "a", "reasoning_content": "R"}
    if answer != "a":  # a client may send the reasoning in its own field
        assert render_prompt([Q, field, chat[2]], tok) == prompt


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("", "a")),
        (BLOCK + "a", ("R", "a")),
        ("R</think>a", ("R", "a")),
        ("<think></think>a", ("", "a")),
        ("say <think>x</think>", ("", "say <think>x</think>")),
        ("<think>open", ("", "<think>open")),
    ],
)
def test_thought_and_answer_are_told_apart(text, parts):
    assert split_thought(text) == parts
    thought, answer = parts
    if thought:
        assert split_thought(with_thought(thought, answer)) == parts


def test_the_block_of_a_row_is_spelled_with_the_tokenizer_s_own_tokens():
    """Special tokens in a text are text; those that frame a thought are the tokens."""
    tok = tokenizer(QWEN3)
    tok.add_tokens(["<think>", "</think>"])
    ids = [tok.convert_tokens_to_ids(token) for token in ("<think>", "</think>")]
    table = rows_table([[["user", "q"], ["assistant", BLOCK + "a"]]])
    how = recipe()
    documents, _ = tokenize_rows(table, with_template_options(tok, ON), how)
    (found,) = documents["ids"].to_pylist()
    assert [i for i in found if i in ids] == ids


def test_reasoning_that_the_prompt_forbids_is_reported():
    table = rows_table(
        [[["user", "q"], ["assistant", BLOCK + "a"]], [["user", "q"], ["assistant", "a"]]]
    )
    _, index = tokenize_rows(table, tokenizer(QWEN3), recipe())
    (report,) = index["report"].drop_null().to_pylist()
    ((source, tally),) = json.loads(report)["tallies"]
    ((what, count),) = tally.items()
    assert (source, count) == (0, 1) and what.startswith("not read: reasoning of answers")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'your turn:' }}{% endif %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}",
    ],
)
def test_a_template_that_moves_or_drops_answers_says_what_it_rendered(template):
    with pytest.raises(ValueError) as caught:
        pieces_of(template, "a")
    text = str(caught.value)
    assert "does not keep the answer behind its prompt" in text
    assert "turn 2" in text and "a2d-question" in text and "chat_template.jinja" in text


def test_options_and_the_day_belong_to_the_frame(monkeypatch):
    import transformers.utils.chat_template_utils as utils

    dated = tokenizer("{{ strftime_now('%d %b %Y') }}" + CHATML)
    before = frame(dated, {})

    class Later(utils.datetime):
        @classmethod
        def now(cls, *args):
            return cls(2031, 1, 2)

    monkeypatch.setattr(utils, "datetime", Later)
    after = frame(tokenizer(dated.chat_template), {})
    assert before != after and after.startswith("02 Jan 2031")
    assert frame(tokenizer(QWEN3), {}) != frame(tokenizer(QWEN3), ON)
    assert frame(tokenizer(CHATML), {}) == frame(tokenizer(CHATML), {})


def test_a_checkpoint_carries_the_options_that_it_was_trained_with(tmp_path):
    tok = with_template_options(tokenizer(QWEN3), ON)
    contract = Contract(mask_token_id=259)
    save_checkpoint(tmp_path, model=tiny_a2d_model(), tokenizer=tok, contract=contract)
    import torch

    again = load_checkpoint(tmp_path, dtype=torch.float32, device="cpu").tokenizer
    assert template_options(again) == ON
    assert render_prompt([Q], again) == render_prompt([Q], tokenizer(QWEN3), options=ON)
    assert render_prompt([Q], again) != render_prompt([Q], tokenizer(QWEN3))
    off = {"enable_thinking": False}
    assert render_prompt([Q], again, options=off) == render_prompt([Q], tokenizer(QWEN3))
    assert tokenizer_hash(again) != tokenizer_hash(tokenizer(QWEN3))


def test_options_that_the_template_does_not_read_are_refused():
    with pytest.raises(OptionError, match=r"data\.template_options=.*holds 'enable_thinkin'"):
        check_template_options("data.template_options", {"enable_thinkin": True}, tokenizer(QWEN3))
    check_template_options("data.template_options", ON, tokenizer(QWEN3))


def tokenized_payload(payload, template=CHATML, **options):
    table = rows_table([payload])
    documents, index = tokenize_rows(table, tokenizer(template), recipe(**options))
    (report,) = index["report"].drop_null().to_pylist()
    return documents.to_pylist(), json.loads(report)


@pytest.mark.parametrize("objective", ["bd3lm", "mdlm"])
def test_an_answer_of_weight_0_is_read_and_not_learned(objective):
    turns = [["user", "q"], ["assistant", "wrong"], ["user", "r"], ["assistant", "right"]]
    payload = {"messages": turns, "unlearned": [1], "tools": ""}
    (document,), _ = tokenized_payload(payload, objective=objective)
    assert document["targets"] == [False, False, False, True]
    plain, _ = tokenized_payload(turns)
    assert document["ids"] == plain[0]["ids"]


def test_a_last_answer_of_weight_0_is_left_out():
    turns = [["user", "q"], ["assistant", "right"], ["user", "r"], ["assistant", "wrong"]]
    payload = {"messages": turns, "unlearned": [3], "tools": ""}
    (document,), _ = tokenized_payload(payload)
    assert document["targets"] == [False, True]


def test_tools_are_shown_by_the_template_or_the_row_is_refused():
    tools = json.dumps([{"type": "function", "function": {"name": "add<|im_end|>"}}])
    payload = {"messages": [["user", "q"], ["assistant", "a"]], "unlearned": [], "tools": tools}
    shown = "{% for t in tools or [] %}{{ 'T:' + t.function.name }}{% endfor %}" + CHATML
    (document,), _ = tokenized_payload(payload, shown)
    text = tiny_tokenizer().decode(document["ids"])
    assert text.startswith("T:add<|im_end|><|im_start|>user")
    assert document["ids"].count(2) == 2  # what a tool's name spells out ends no turn
    none, report = tokenized_payload(payload)
    assert none == [] and "does not read" in report["offenders"][0][-1]
