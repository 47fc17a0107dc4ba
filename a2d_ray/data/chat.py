"""Conversations -> segments of token ids: the same for training and for prompts. No Ray here.

A segment is one assistant answer through its end-of-turn token, or the stretch between two
answers (the end of the template's turn, the next user turns, the next generation prompt). Each
segment is rendered from its own turns and the template's frame around them, never from what
follows, so a prompt's segments are exactly the training document's segments before the answer,
and no later turn can change an earlier segment. Token ids such as pad or eos play no part.

Where a template renders an answer differently once it is history (Qwen3 drops the empty think
block, R1 the reasoning), the form in which the answer was generated is kept: history stays a
prefix, and so does its KV cache. The generation prompt decides about the think block: an open one
is closed by the answer, a closed one stays the only one, and without one the answer has its own.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from a2d_ray.config import OptionError
from a2d_ray.data.literals import LiteralSpecials
from a2d_ray.data.roles import find_role, is_tool
from a2d_ray.data.thoughts import (
    THOUGHT_KEY,
    apart,
    begin_answer,
    place_thought,
    split_prompt,
)
from a2d_ray.models.tokenizers import template_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For tokenizers without a chat template: ``User:``/``Assistant:`` lines, EOS after an answer."""

Message = Mapping[str, str]
_DEFAULTS: Mapping[str, Any] = {"enable_thinking": False}
_QUESTION = {"role": "user", "content": "a2d-question"}
_ANSWER = {"role": "assistant", "content": "a2d-answer"}


@dataclass(frozen=True)
class SegmentText:
    """Text of one segment; `is_learned` counts where it is an answer."""

    text: str
    is_answer: bool
    is_learned: bool = True


@dataclass(frozen=True)
class ChatRenderer:
    """Renders conversations into pieces with one tokenizer's chat template.

    Attributes:
        tokenizer: has the template.
        options: what the template reads besides the messages, such as ``enable_thinking``.

    Raises:
        ValueError: a template in which an answer does not follow its generation prompt.
    """

    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Message]) -> list[SegmentText]:
        """The pieces of a conversation that ends with an answer: stretch, answer, stretch, ...

        Args:
            messages: ``{"role", "content"}``; the first is not an answer.

        Raises:
            ValueError: no messages, an answer at the start, or turns that the template refuses.
        """
        return self._pieces(messages)[0]

    def render_prompt(self, messages: Sequence[Message]) -> list[SegmentText]:
        """The pieces of a prompt, the last of which ends with the generation prompt."""
        pieces, rest = self._pieces(messages)
        return [*pieces, SegmentText(self._stretch(rest, is_first=not pieces), is_answer=False)]

    def begin_answer(self, message: Message) -> str:
        """How the answer begins that a prompt asks for, behind its generation prompt."""
        _, block, is_closed = self._probe_prompt
        thought = message.get(THOUGHT_KEY) or ""
        return begin_answer(thought, message["content"], block, is_closed=is_closed)

    @cached_property
    def end_of_turn(self) -> str:
        """What a whole answer ends with: the template's text through the end-of-turn token."""
        return self._ending.removesuffix(self._after_turn)

    def _pieces(self, messages: Sequence[Message]) -> tuple[list[SegmentText], list[Message]]:
        """The pieces through the last answer, and the messages behind it."""
        pieces: list[SegmentText] = []
        waiting: list[Message] = []
        for message in messages:
            if message["role"] == "assistant":
                pieces.append(
                    SegmentText(self._stretch(waiting, is_first=not pieces), is_answer=False)
                )
                pieces.append(SegmentText(self._answer(message), is_answer=True))
                waiting = []
            else:
                waiting.append(message)
        return pieces, waiting

    def _stretch(self, messages: Sequence[Message], *, is_first: bool) -> str:
        if is_first:
            if not messages:
                raise ValueError("a conversation starts with a user or system message, not here")
            return self._apply(messages, prompt=True)
        text = self._apply([_QUESTION, _ANSWER, *messages], prompt=True)
        at = text.find(self._answered)
        if at < 0:
            raise ValueError(
                "the chat template drops earlier answers: of a question, its answer and turn 3 it "
                f"renders {_tail(text)}"
            )
        return text[at + len(self._answered) :]

    def _answer(self, message: Message) -> str:
        """An answer as the model is to generate it, through its end-of-turn token."""
        bare = {key: value for key, value in message.items() if key != THOUGHT_KEY}
        text = self._apply([_QUESTION, bare], prompt=False)
        header, block, is_closed = self._probe_prompt
        if not (text.startswith(header) and text.endswith(self._ending)):
            raise self._displaced(text)
        body = text[len(header) : len(text) - len(self._after_turn)]
        thought = message.get(THOUGHT_KEY) or ""
        return place_thought(thought, body, block, is_closed=is_closed)

    @cached_property
    def drops_thoughts(self) -> bool:
        """Whether the generation prompt closes the think block: answers come without thoughts."""
        return self._probe_prompt[2]

    @cached_property
    def _probe_prompt(self) -> tuple[str, str, bool]:
        """`thoughts.split_prompt` of a prompt of one question."""
        return split_prompt(self._apply([_QUESTION], prompt=True))

    @cached_property
    def _ending(self) -> str:
        """What the template writes behind an answer."""
        text = self._apply([_QUESTION, _ANSWER], prompt=False)
        content = _ANSWER["content"]
        if not text.startswith(self._probe_prompt[0]) or content not in text:
            raise self._displaced(text)
        return text[text.rindex(content) + len(content) :]

    def _displaced(self, text: str) -> ValueError:
        header, block, _ = self._probe_prompt
        return ValueError(
            "the chat template does not keep the answer behind its prompt: it asks for an answer "
            f"with {_tail(header + block)} and renders one, turn 2, as {_tail(text)}. Give the "
            "tokenizer a template that does (chat_template.jinja beside tokenizer_config.json)"
        )

    @cached_property
    def _after_turn(self) -> str:
        """The part of the ending behind the end-of-turn token; '' if there is no such token."""
        added = self.tokenizer.added_tokens_decoder.values()
        marks = {str(token) for token in added if token.special}
        marks |= set(self.tokenizer.all_special_tokens)
        ends = {
            self._ending.find(mark) + len(mark) for mark in marks if mark and mark in self._ending
        }
        return self._ending[min(ends) :] if ends else ""

    @cached_property
    def _answered(self) -> str:
        """The probe's answer through its end-of-turn token, as history shows it."""
        return _ANSWER["content"] + self.end_of_turn

    def _apply(self, messages: Sequence[Message], *, prompt: bool) -> str:
        from jinja2 import TemplateError

        template = None if self.tokenizer.chat_template else DEFAULT_TEMPLATE
        options = {**_DEFAULTS, **template_options(self.tokenizer), **self.options}
        if template:
            options["chat_template"] = template
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=prompt,
                **options,
            )
        except (TemplateError, TypeError, ArithmeticError) as error:  # options of wrong types too
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        assert isinstance(text, str)
        return text


def encode_pieces(
    pieces: Sequence[SegmentText], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Token ids of each piece. Pieces are encoded apart, so their borders are token borders."""
    if not pieces:
        return []
    texts = [piece.text for piece in pieces]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"])


def render_prompt(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    continue_final_message: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Segments of a prompt, ready for generation: the last one ends with the generation prompt.

    Special tokens that a message spells out are encoded as ordinary text.

    Args:
        messages: ``{"role": "system" | "user" | "assistant", "content": text}``, at least one; the
            roles by any name and in any case that data sets know.
        tokenizer: a tokenizer; without a chat template, `DEFAULT_TEMPLATE` is used.
        continue_final_message: the last message, the assistant's, is how the answer begins: a
            segment of its own behind the generation prompt.
        options: what the template reads besides the messages, such as ``enable_thinking``.

    Returns:
        Token ids per segment: stretch, answer, stretch, ..., stretch: the segments of the
        training document before the answer that is asked for.

    Raises:
        ValueError: no messages, an unknown role, an answer first, turns that the template refuses,
            nothing to continue, or options that the template does not read.
    """
    options = options or {}
    check_template_options("chat_template_kwargs", options, tokenizer)
    literals = LiteralSpecials(tokenizer)
    turns = _with_known_roles(messages)
    begun: list[dict[str, str]] = []
    if continue_final_message:
        if not turns or turns[-1]["role"] != "assistant":
            raise OptionError(
                "continue_final_message", True, "needs a last message of the assistant", "add one"
            )
        begun = literals.hide([turns.pop()])
    turns = literals.hide([apart(turn) for turn in turns])
    hidden = {k: literals.hide_in(v) if isinstance(v, str) else v for k, v in options.items()}
    renderer = ChatRenderer(tokenizer, hidden)
    texts = [piece.text for piece in renderer.render_prompt(turns)]
    texts += filter(None, map(renderer.begin_answer, begun))
    return [literals.encode(text) for text in texts]


def _with_known_roles(messages: Sequence[Message]) -> list[dict[str, str]]:
    turns = []
    for index, message in enumerate(messages):
        name = message["role"]
        role = name if is_tool(name) else find_role(name)  # a template may know tools
        if role is None:
            fix = "use system, user or assistant"
            raise OptionError(f"messages.{index}.role", name, "is no known role", fix)
        turns.append({**message, "role": role})
    return turns


def check_template_options(
    key: str, options: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Refuses options that a tokenizer's chat template does not read.

    Raises:
        OptionError: of the option `key`, naming the one.
    """
    reserved = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    for name, value in options.items():
        if name in reserved or not (is_read(name, tokenizer) or value == _DEFAULTS.get(name)):
            raise OptionError(
                key,
                dict(options),
                f"holds {name!r}, which the model's chat template does not read",
                "leave it out",
            )


def is_read(name: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer's chat template reads a variable of this name."""
    template = str(tokenizer.chat_template or DEFAULT_TEMPLATE)
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def frame(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> str:
    """A short conversation as the template and its options render it, today's date included."""
    messages = [{**_QUESTION, "role": "system"}, _QUESTION, _ANSWER, _QUESTION]
    renderer = ChatRenderer(tokenizer, options)
    try:
        pieces = renderer.render_prompt(messages)
    except ValueError:  # a template may refuse system messages
        pieces = renderer.render_prompt(messages[1:])
    return "".join(piece.text for piece in pieces)


def _tail(text: str) -> str:
    return repr(text if len(text) <= 160 else f"...{text[-160:]}")
