"""One adapter per dataset shape: a row as it is stored -> `Example`.

The shape is detected from the columns: `ROW_SHAPES` is the table (tulu-3, smoltalk, ultrachat have
``messages``, ShareGPT ``conversations``, opc-sft and alpaca ``instruction`` and ``output``). Or
``data.adapter`` names a function of the user's own. What an adapter does not look at is reported.
"""

import importlib
import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from a2d_ray.config import OptionError
from a2d_ray.data.roles import find_role, is_tool
from a2d_ray.data.sources.mixture import SpecError
from a2d_ray.data.sources.watched import Watched
from a2d_ray.data.thoughts import THOUGHT_KEYS, split_thought, with_thought

_LANGUAGE_COLUMNS = ("lang", "language", "programming_language")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row: a conversation (`messages`) or plain `text`; the other is empty.

    Attributes:
        messages: role and content of each; the reasoning of an answer stands in front of it
            (`thoughts.with_thought`).
        text: plain text.
        unlearned: places of answers that are read and not learned (weight 0).
        tools: what the chat template shows as tools, a JSON list; '' for none.
    """

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""
    unlearned: tuple[int, ...] = ()
    tools: str = ""


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
        return lambda row: _from_custom(_call(function, custom, row))
    if text_field is not None:
        if text_field not in columns:
            raise OptionError(
                "data.text_field",
                text_field,
                f"is no column of {source!r}",
                f"it has {', '.join(sorted(columns))}",
            )
        return lambda row: _from_text(row, text_field)
    _check_supervised(columns, source)
    for needed, adapter in ROW_SHAPES.items():
        if set(needed) <= set(columns):
            return adapter
    known = ", ".join(" and ".join(needed) for needed in ROW_SHAPES)
    raise SpecError(
        source,
        f"has the columns {', '.join(sorted(columns)) or '(none)'}",
        f"need {known} (or set data.text_field or data.adapter)",
    )


def _check_supervised(columns: Collection[str], source: str) -> None:
    """Refuses rows that say which answer is better, or good at all: half of them are wrong."""
    compared = {"chosen", "rejected"}
    if "messages" in columns:  # the answer that was chosen stands there, too
        return
    for marks in (compared, {"prompt", "completion", "label"}):
        if marks <= set(columns):
            raise SpecError(
                source,
                f"holds preferences ({', '.join(sorted(marks))}), which are not answers to learn",
                "name a supervised set, or choose the answers in a function (data.adapter)",
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
    if roles.count("assistant") == len(example.unlearned):
        raise MalformedRowError("no answer to learn: all have weight 0")
    return example


def _from_messages(row: Row) -> Example:
    return _example(row, _turns(row, "messages"))


def _from_sharegpt(row: Row) -> Example:
    return _example(row, _turns(row, "conversations"))


def _pair_adapter(question: str, answer: str) -> Adapter:
    def adapt(row: Row) -> Example:
        turns = [*_history(row), *_side(row, question, "user")]
        extra = _optional_text(row, "input", numbers=True) if question == "instruction" else ""
        if extra:
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{extra}")
        return _example(row, [*turns, *_side(row, answer, "assistant")])

    return adapt


def _call(function: Callable[[dict[str, Any]], Any], name: str, row: Row) -> Any:
    """What a user's function makes of a row; what it raises is told as its error."""
    try:
        return function(dict(row))
    except MalformedRowError:
        raise
    except Exception as error:
        raise OptionError(
            "data.adapter",
            name,
            f"raised {type(error).__name__}: {error}",
            f"the row was {json.dumps(dict(row), ensure_ascii=False, default=str):.200}",
        ) from error


def _from_custom(result: Any) -> Example:
    if isinstance(result, Example):
        return check_example(result)
    if isinstance(result, Mapping) and "messages" in result:
        return _from_messages(Watched(result))
    if isinstance(result, Mapping) and "text" in result:
        return _from_text(result)
    raise MalformedRowError("data.adapter returned neither messages nor text")


def _from_text(row: Row, column: str = "text") -> Example:
    return Example(text=_content(row.get(column)))


_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
_WEIGHT_KEYS = ("weight", "train", "training", "loss")  # OpenAI's, Axolotl's, ms-swift's

ROW_SHAPES: dict[tuple[str, ...], Adapter] = {
    ("messages",): _from_messages,
    ("conversations",): _from_sharegpt,
    ("instruction", "output"): _pair_adapter("instruction", "output"),
    ("instruction", "response"): _pair_adapter("instruction", "response"),
    ("prompt", "completion"): _pair_adapter("prompt", "completion"),
    ("prompt", "response"): _pair_adapter("prompt", "response"),
    ("question", "answer"): _pair_adapter("question", "answer"),
    ("question", "response"): _pair_adapter("question", "response"),
    ("query", "response"): _pair_adapter("query", "response"),
    ("input", "output"): _pair_adapter("input", "output"),
    ("text",): _from_text,
}
"""The columns of each shape and its adapter; the first shape whose columns are there is taken.

Conversations and pairs may have a system message, tools, and pairs earlier turns beside them.
"""


@dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    is_learned: bool = True


def _example(row: Row, turns: Sequence[_Turn]) -> Example:
    """The conversation of a row, with the system message and the tools that stand beside it."""
    messages = [(turn.role, turn.content) for turn in turns]
    unlearned = [i for i, turn in enumerate(turns) if not turn.is_learned]
    system = next((t for c in _SYSTEM_COLUMNS if (t := _optional_text(row, c))), "")
    if system and ("system", system) not in messages:
        if any(role == "system" for role, _ in messages):
            raise MalformedRowError("two system messages: one of its own column")
        messages.insert(0, ("system", system))
        unlearned = [i + 1 for i in unlearned]
    return check_example(
        Example(messages=tuple(messages), unlearned=tuple(unlearned), tools=_tools(row))
    )


def _turns(row: Row, column: str) -> list[_Turn]:
    """The messages of a column: OpenAI's form or ShareGPT's."""
    turns = row.get(column)
    if turns is None or (isinstance(turns, list) and not turns):
        raise MalformedRowError("no messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise MalformedRowError("messages are not a list of objects")
    label = f"key {column}[]."
    return [
        _message(row.inner(turn, label) if isinstance(row, Watched) else turn) for turn in turns
    ]


def _side(row: Row, column: str, role: str) -> list[_Turn]:
    """One side of a pair: a text, a number, or, as TRL has it, a list of messages."""
    value = row.get(column)
    if isinstance(value, list) and value and isinstance(value[0], dict) and "type" not in value[0]:
        return _turns(row, column)
    content = _content(_number_text(value) or value)
    return [_Turn(role, _with_reasoning(row, content) if role == "assistant" else content)]


def _history(row: Row) -> list[_Turn]:
    """Earlier questions and answers, as LLaMA-Factory's rows have them."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        raise MalformedRowError("history is not a list of [question, answer]")
    roles = ("user", "assistant")
    return [_Turn(r, _content(text)) for p in pairs for r, text in zip(roles, p, strict=True)]


def _message(turn: Row) -> _Turn:
    name = turn.get("role")
    content_key = "content"
    if name is None:
        name, content_key = turn.get("from"), "value"
    if is_tool(name) or turn.get("tool_calls") or turn.get("function_call"):
        raise MalformedRowError("tool messages are not supported")
    role = find_role(name)
    if role is None:
        raise MalformedRowError(f"unknown role {name!r:.40}")
    content = _content(turn.get(content_key), may_be_empty=role == "system")
    if role != "assistant":
        return _Turn(role, content)
    return _Turn(role, _with_reasoning(turn, content), is_learned=_is_learned(turn))


def _is_learned(turn: Row) -> bool:
    for key in _WEIGHT_KEYS:
        value = turn.get(key)
        if value is not None and value not in (0, 1):
            raise MalformedRowError(f"{key} {value!r:.20} of a message is neither 0 nor 1")
        if value == 0 and value is not None:
            return False
    return True


def _with_reasoning(holder: Row, answer: str) -> str:
    """An answer behind the reasoning that its message or row has in a field of its own."""
    texts = [text for key in THOUGHT_KEYS if (text := _optional_text(holder, key))]
    return with_thought(texts[0], answer) if texts and not split_thought(answer)[0] else answer


def _tools(row: Row) -> str:
    """The tools of a row as a JSON list; '' if it has none."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise MalformedRowError("tools are not JSON") from None
    if not tools or (isinstance(tools, str) and not tools.strip()):
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MalformedRowError("tools are not a list of objects")
    return json.dumps(_given(tools), ensure_ascii=False)


def _given(value: Any) -> Any:
    """Values without the nulls that Parquet puts where one object has a key and another none."""
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _optional_text(row: Row, key: str, *, numbers: bool = False) -> str:
    """The text of a key, '' if it has none; what it holds instead is not counted as read."""
    value: Any = row.peek(key) if isinstance(row, Watched) else row.get(key)
    text = _number_text(value) if numbers else ""
    if not text and not (_is_text(value) and value.strip()):
        return ""
    return text or str(row[key])


def _number_text(value: Any) -> str:
    """A number as text, '' for anything else; NaN is how pandas writes that there is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and math.isfinite(value) else ""


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
