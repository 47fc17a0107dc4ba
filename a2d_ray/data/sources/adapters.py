"""One adapter per dataset shape: a row as it is stored -> `Example`.

The shape is detected from the columns: `ROW_SHAPES` is the table (tulu-3, smoltalk, ultrachat have
``messages``, ShareGPT ``conversations``, opc-sft and alpaca ``instruction`` and ``output``). Or
``data.adapter`` names a function of the user's own.
"""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from a2d_ray.config import OptionError
from a2d_ray.data.roles import find_role, is_tool
from a2d_ray.data.sources.mixture import SpecError

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


def find_adapter(
    columns: Collection[str], source: str, *, text_field: str | None, custom: str | None
) -> Adapter:
    """The adapter for rows with these columns.

    Args:
        columns: column names.
        source: name of the source, for the error.
        text_field: ``data.text_field``: read this column as plain text.
        custom: ``data.adapter``: ``package.module:function`` in place of all others.

    Raises:
        OptionError: no known shape; names the columns that there are. Or no such function.
    """
    if custom is not None:
        function = load_adapter(custom)
        return lambda row: _from_custom(function(dict(row)))
    if text_field is not None:
        if text_field not in columns:
            raise OptionError(
                "data.text_field",
                text_field,
                f"is no column of {source!r}",
                f"it has {', '.join(sorted(columns))}",
            )
        return lambda row: _from_text(row, text_field)
    for needed, adapter in ROW_SHAPES.items():
        if set(needed) <= set(columns):
            return adapter
    known = ", ".join(" and ".join(needed) for needed in ROW_SHAPES)
    raise SpecError(
        source,
        f"has the columns {', '.join(sorted(columns)) or '(none)'}",
        f"need {known} (or set data.text_field or data.adapter)",
    )


def load_adapter(path: str) -> Callable[[dict[str, Any]], Any]:
    """The function that ``data.adapter`` names: a row as a dict -> {"messages": [...]}, {"text":
    ...} or an `Example`; it raises `MalformedRowError` to drop a row.

    Raises:
        OptionError: not ``package.module:function``, or nothing callable there.
    """
    module, colon, name = path.partition(":")
    if not colon or not name.isidentifier():
        raise OptionError("data.adapter", path, "is no function", "write package.module:function")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            "data.adapter",
            path,
            f"cannot be imported ({error})",
            "the module must be importable where the job runs (PYTHONPATH)",
        ) from error
    if not callable(function):
        raise OptionError("data.adapter", path, "is no function", "name one")
    found: Callable[[dict[str, Any]], Any] = function
    return found


def adapter_source(path: str | None) -> str | None:
    """The code of the module that ``data.adapter`` names: what decides its rows."""
    if path is None:
        return None
    module = inspect.getmodule(load_adapter(path))
    return path if module is None else f"{path}\n{inspect.getsource(module)}"


def matches_language(row: Row, example: Example, lang: str) -> tuple[bool, str]:
    """Whether a row is about a programming language, and by which criterion.

    A language column decides if there is one, else the fenced code of the answers, else whether
    the text names the language.
    """
    for column in _LANGUAGE_COLUMNS:
        if isinstance(row.get(column), str):
            return row[column].strip().lower() == lang, f"column {column}"
    answers = "\n".join(content for role, content in example.messages if role == "assistant")
    fences = [line[3:].strip().lower() for line in answers.splitlines() if line.startswith("```")]
    if any(fences):
        return lang in fences, "fenced code"
    everything = "\n".join([example.text, *(content for _, content in example.messages)])
    return lang in everything.lower(), "name in the text"


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
    return _conversation(row.get("messages"), "role", "content")


def _from_sharegpt(row: Row) -> Example:
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        return _conversation(turns, "role", "content")
    return _conversation(turns, "from", "value")


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


def _from_custom(result: Any) -> Example:
    if isinstance(result, Example):
        return check_example(result)
    if isinstance(result, Mapping) and "messages" in result:
        return _from_messages(result)
    if isinstance(result, Mapping) and "text" in result:
        return _from_text(result)
    raise MalformedRowError("data.adapter returned neither messages nor text")


def _from_text(row: Row, column: str = "text") -> Example:
    return Example(text=_content(row.get(column)))


ROW_SHAPES: dict[tuple[str, ...], Adapter] = {
    ("messages",): _from_messages,
    ("conversations",): _from_sharegpt,
    ("instruction", "output"): _pair_adapter("instruction", "output"),
    ("instruction", "response"): _pair_adapter("instruction", "response"),
    ("prompt", "completion"): _pair_adapter("prompt", "completion"),
    ("question", "answer"): _pair_adapter("question", "answer"),
    ("text",): _from_text,
}
"""The columns of each shape and its adapter; the first shape whose columns are there is taken."""


def _conversation(turns: Any, role_key: str, content_key: str) -> Example:
    if turns is None or (isinstance(turns, list) and not turns):
        raise MalformedRowError("no messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise MalformedRowError("messages are not a list of objects")
    messages = tuple(_message(turn, turn.get(role_key), content_key) for turn in turns)
    return check_example(Example(messages=messages))


def _message(turn: Mapping[str, Any], name: Any, content_key: str) -> tuple[str, str]:
    if is_tool(name) or turn.get("tool_calls") or turn.get("function_call"):
        raise MalformedRowError("tool messages are not supported")
    role = find_role(name)
    if role is None:
        raise MalformedRowError(f"unknown role {name!r:.40}")
    return role, _content(turn.get(content_key), may_be_empty=role == "system")


def _content(value: Any, *, may_be_empty: bool = False) -> str:
    """A text; the parts of a multi-part content are joined."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = _join_parts(value)
    if not _is_text(value):
        raise MalformedRowError("content is not a string")
    if not may_be_empty and not value.strip():
        raise MalformedRowError("empty content")
    text: str = value
    return text


def _join_parts(parts: Sequence[Mapping[str, Any]]) -> str:
    for part in parts:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise MalformedRowError("a part of the content is not text")
    return "".join(part["text"] for part in parts)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates: JSON can spell them, tokenizers refuse them
        raise MalformedRowError("invalid Unicode") from None
    return True
