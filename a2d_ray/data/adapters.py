"""One adapter per dataset shape: a row as it is stored -> `Example`.

The shape is detected from the columns: ``messages`` (tulu-3, smoltalk, ultrachat),
``conversations`` (ShareGPT), ``instruction``/``output`` (opc-sft, alpaca), ``text``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_PAIRS = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"))
_LANGUAGE_COLUMNS = ("lang", "language", "programming_language")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row: a conversation (`messages`) or plain `text`; the other is empty."""

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""


class MalformedRowError(ValueError):
    """A row that is dropped and counted; the message is the reason."""


Adapter = Callable[[Row], Example]


def detect_adapter(columns: Collection[str], text_field: str | None, source: str) -> Adapter:
    """The adapter for rows with these columns.

    Args:
        columns: column names.
        text_field: ``data.text_field``: read this column as plain text.
        source: name of the source, for the error.

    Raises:
        ValueError: no known shape; names the columns that there are.
    """
    if text_field is not None:
        if text_field not in columns:
            raise ValueError(
                f"data.text_field: {source!r} has no column {text_field!r}; it has "
                f"{', '.join(sorted(columns))}"
            )
        return lambda row: _from_text(row, text_field)
    if "messages" in columns:
        return _from_messages
    if "conversations" in columns:
        return _from_sharegpt
    for question, answer in _PAIRS:
        if question in columns and answer in columns:
            return _pair_adapter(question, answer)
    if "text" in columns:
        return lambda row: _from_text(row, "text")
    raise ValueError(
        f"data.spec: {source!r} has the columns {', '.join(sorted(columns)) or '(none)'}; need "
        "messages, conversations, instruction and output, prompt and completion, or text "
        "(or set data.text_field)"
    )


def has_language(row: Row, example: Example, lang: str) -> bool:
    """Whether a row is about a programming language.

    Decided by a language column if there is one, else by the fenced code of the answers, else by
    whether the text names the language.
    """
    for column in _LANGUAGE_COLUMNS:
        if isinstance(row.get(column), str):
            return row[column].strip().lower() == lang
    answers = "\n".join(content for role, content in example.messages if role == "assistant")
    fences = [line[3:].strip().lower() for line in answers.splitlines() if line.startswith("```")]
    if any(fences):
        return lang in fences
    everything = "\n".join([example.text, *(content for _, content in example.messages)])
    return lang in everything.lower()


def check_example(example: Example) -> Example:
    """The example, if something can be learned from it.

    Raises:
        MalformedRowError: a conversation without an answer, or that starts with one.
    """
    if example.text:
        return example
    roles = [role for role, _ in example.messages]
    if "assistant" not in roles:
        raise MalformedRowError("no answer")
    if roles[0] == "assistant":
        raise MalformedRowError("starts with an answer")
    return example


def _from_messages(row: Row) -> Example:
    return _conversation(row.get("messages"), "role", "content", {role: role for role in ROLES})


def _from_sharegpt(row: Row) -> Example:
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        return _conversation(turns, "role", "content", _SHAREGPT_ROLES)
    return _conversation(turns, "from", "value", _SHAREGPT_ROLES)


def _pair_adapter(question: str, answer: str) -> Adapter:
    def adapt(row: Row) -> Example:
        prompt = _content(row.get(question))
        extra = row.get("input") if question == "instruction" else None
        if extra is not None and _is_text(extra) and extra.strip():
            prompt = f"{prompt}\n\n{extra}"
        return check_example(
            Example(messages=(("user", prompt), ("assistant", _content(row.get(answer)))))
        )

    return adapt


def _from_text(row: Row, column: str) -> Example:
    return Example(text=_content(row.get(column)))


def _conversation(turns: Any, role_key: str, content_key: str, roles: Mapping[str, str]) -> Example:
    if turns is None or (isinstance(turns, list) and not turns):
        raise MalformedRowError("no messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise MalformedRowError("messages are not a list of objects")
    messages = []
    for turn in turns:
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            raise MalformedRowError("unknown role")
        is_system = roles[role] == "system"
        messages.append((roles[role], _content(turn.get(content_key), may_be_empty=is_system)))
    return check_example(Example(messages=tuple(messages)))


def _content(value: Any, *, may_be_empty: bool = False) -> str:
    if not _is_text(value):
        raise MalformedRowError("content is not a string")
    if not may_be_empty and not value.strip():
        raise MalformedRowError("empty content")
    return value


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates: JSON can spell them, tokenizers refuse them
        raise MalformedRowError("invalid Unicode") from None
    return True
