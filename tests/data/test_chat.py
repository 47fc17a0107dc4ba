"""Segments: the same in training and in prompts, whatever follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2d_ray.config import OptionError
from a2d_ray.data.chat import ChatRenderer, encode_pieces, render_prompt
from tests.tiny import tiny_tokenizer

# Qwen3's way with answers: an empty think block in the newest one, none in history.
THINKING_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
TRIMMING_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content | trim }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TEMPLATES = {
    "chatml": tiny_tokenizer().chat_template,
    "none": None,
    "thinking": THINKING_TEMPLATE,
    "trimming": TRIMMING_TEMPLATE,
}


def tokenizer(name):
    found = tiny_tokenizer()
    found.chat_template = TEMPLATES[name]
    return found


def training_segments(messages, tok):
    return encode_pieces(ChatRenderer(tok).render(messages), tok)


def text(**options):
    return st.text(min_size=1, max_size=8, **options).filter(lambda t: t.strip())


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(text())}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(text())})
        messages.append({"role": "assistant", "content": draw(text())})
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations())
def test_prompt_segments_are_the_training_segments_before_the_answer(name, messages):
    tok = tokenizer(name)
    whole = training_segments(messages, tok)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for number, at in enumerate(answers):
        assert render_prompt(messages[:at], tok) == whole[: 2 * number + 1]


@pytest.mark.parametrize("name", TEMPLATES)
@given(first=conversations(), second=conversations(), third=conversations())
def test_later_turns_change_no_earlier_segment(name, first, second, third):
    tok = tokenizer(name)
    alone = training_segments(first, tok)
    for later in (second, third):
        turns = [message for message in later if message["role"] != "system"]
        assert training_segments([*first, *turns], tok)[: len(alone)] == alone


@given(messages=conversations())
def test_segments_spell_the_template_s_own_rendering(messages):
    tok = tokenizer("chatml")
    text = "".join(tok.decode(ids) for ids in training_segments(messages, tok))
    assert text + "\n" == tok.apply_chat_template(messages, tokenize=False)


def test_an_answer_ends_with_its_end_of_turn_token_and_keeps_eos_inside():
    tok = tokenizer("chatml")
    messages = [
        {"role": "user", "content": "q<|im_end|>"},
        {"role": "assistant", "content": "a<|im_end|>b\n"},
    ]
    _, answer = ChatRenderer(tok).render(messages)
    assert answer.text == "a<|im_end|>b\n<|im_end|>"


def test_thinking_is_off_in_the_prompt_and_history_keeps_its_form():
    pieces = ChatRenderer(tokenizer("thinking")).render(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "r"},
            {"role": "assistant", "content": "b"},
        ]
    )
    prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert [piece.text for piece in pieces] == [
        f"<|im_start|>user\nq<|im_end|>\n{prompt}",
        "a<|im_end|>",
        f"\n<|im_start|>user\nr<|im_end|>\n{prompt}",
        "b<|im_end|>",
    ]


def test_thinking_can_be_switched_on_and_history_is_still_cut_into_turns():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    chat += [{"role": "user", "content": "r"}]
    tok = tokenizer("thinking")
    on = [tok.decode(ids) for ids in render_prompt(chat, tok, options={"enable_thinking": True})]
    assert on[0] == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert on[-1] == "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(chat, tok, options={"enable_thinking": False}) == render_prompt(chat, tok)


@pytest.mark.parametrize(
    ("name", "value"),
    [("thinking", True), ("messages", []), ("chat_template", ""), ("tokenize", True), ("a.b", 1)],
)
def test_what_the_template_does_not_read_is_refused(name, value):
    messages = [{"role": "user", "content": "q"}]
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        render_prompt(messages, tokenizer("thinking"), options={name: value})
    with pytest.raises(ValueError, match="enable_thinking"):
        render_prompt(messages, tokenizer("chatml"), options={"enable_thinking": True})
    off = {"enable_thinking": False}  # as ever: nothing is asked for
    plain = render_prompt(messages, tokenizer("chatml"))
    assert render_prompt(messages, tokenizer("chatml"), options=off) == plain


@pytest.mark.parametrize(
    ("template", "option"),
    [
        ("{{ raise_exception('no') }}", {"raise_exception": "x"}),
        ("{{ size + 1 }}", {"size": "x"}),
        ("{{ 1 / size }}", {"size": 0}),
        ("{% for i in range(size) %}{% endfor %}", {"size": 10**9}),
    ],
)
def test_options_that_the_template_fails_on_are_refused(template, option):
    tok = tiny_tokenizer()
    tok.chat_template = template
    with pytest.raises(ValueError, match="chat template"):
        render_prompt([{"role": "user", "content": "q"}], tok, options=option)


def test_roles_of_a_prompt_are_known_by_any_name_and_an_unknown_one_is_named():
    turns = [("user", "q"), ("assistant", "a"), ("user", "r")]
    tok = tokenizer("chatml")
    plain = render_prompt([{"role": role, "content": text} for role, text in turns], tok)
    other = {"user": "Human", "assistant": " GPT"}
    assert render_prompt([{"role": other[r], "content": text} for r, text in turns], tok) == plain
    with pytest.raises(OptionError, match=r"messages\.1\.role=asistant is no known role: use"):
        render_prompt([{"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}], tok)


def test_special_tokens_in_an_option_are_text():
    tok = tiny_tokenizer()
    tok.chat_template = "{{ tone + '<|im_end|>' }}" + tok.chat_template
    (ids,) = render_prompt(
        [{"role": "user", "content": "q"}], tok, options={"tone": "a<|im_end|>b"}
    )
    assert ids[: len("a<|im_end|>b")] == tok("a<|im_end|>b", split_special_tokens=True).input_ids
    assert ids[len("a<|im_end|>b")] == tok.eos_token_id


def test_without_a_template_the_default_one_is_used():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pieces = ChatRenderer(tokenizer("none")).render(messages)
    assert [piece.text for piece in pieces] == ["User:\nq\n\nAssistant:\n", "a<|im_end|>"]


def test_turns_that_cannot_be_rendered_are_refused():
    tok = tokenizer("chatml")
    with pytest.raises(ValueError, match="starts with a user or system message"):
        render_prompt([], tok)
    with pytest.raises(ValueError, match="starts with a user or system message"):
        training_segments([{"role": "assistant", "content": "a"}], tok)
    tok.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(ValueError, match="only one turn"):
        render_prompt([{"role": "user", "content": "q"}], tok)


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_end|>b", "<|im_start|><|endoftext|>x", ""])
def test_special_tokens_in_a_message_are_text(text):
    """Nobody closes a turn from within it; what was typed comes out again."""
    tokenizer = tiny_tokenizer()
    special = set(tokenizer.all_special_ids)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    messages.append({"role": "user", "content": "next"})
    segments = render_prompt(messages, tokenizer)
    harmless = [message | {"content": "x"} for message in messages]
    for ids, plain in zip(segments, render_prompt(harmless, tokenizer), strict=True):
        assert [i for i in ids if i in special] == [i for i in plain if i in special]
    whole = tokenizer.decode([i for ids in segments for i in ids])
    assert whole.count(text) >= 2
