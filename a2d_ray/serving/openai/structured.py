"""Answers that obey a form: JSON schemas, grammars, calls of tools.

The form becomes a grammar of llguidance (`a2d_ray.serving.model.grammars`); under a rule of
`GRAMMAR_RULES` only what it accepts is committed.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from a2d_ray.http.bodies import Plain, check_json
from a2d_ray.serving.openai.options import ignored
from a2d_ray.serving.openai.schemas import without_notes

OPENING = "<tool_call>\n"
CLOSING = "\n</tool_call>"
_BETWEEN = "\n"  # of two calls
_CALL = re.compile(rf'{OPENING}\{{"name": "([^"\n]+)", "arguments": (.*)\}}{CLOSING}')
_CALLS = re.compile(rf"{_CALL.pattern}({_BETWEEN}{_CALL.pattern})*")
_FIRST_SCHEMA_LINE = 6  # of a grammar of tools; the others follow in every second one
_JSON_PIECE = re.compile(r'("(?:[^"\\]|\\.)*")|\s+|([:,])')


class TextFormat(Plain):
    """No form."""

    type: Literal["text"]


class JsonFormat(Plain):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Plain):
    """A schema with its name."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Plain):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Plain):
    """Text that matches a regular expression as a whole (not in OpenAI's API)."""

    type: Literal["regex"]
    regex: str = Field(min_length=1)


class GrammarFormat(Plain):
    """Text of a context-free grammar in Lark's notation (not in OpenAI's API)."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1)


ResponseFormat = Annotated[
    TextFormat | JsonFormat | JsonSchemaFormat | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
]


def _parse_schema(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("a text must be a JSON schema, nested 100 levels at most") from None


Schema = Annotated[dict[str, Any], BeforeValidator(_parse_schema)]
"""A JSON schema, or the text of one."""
Text = Annotated[str, Field(min_length=1)]
Choices = Annotated[list[Text], Field(min_length=1, max_length=1024)]


class StructuredOutputs(Plain):
    """vLLM's name for a form: one of these."""

    json_schema: Schema | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if len(self._given()) != 1:
            raise ValueError("send one of json, regex, choice and grammar")
        return self

    def to_format(self) -> ResponseFormat:
        """The same as a `response_format`."""
        ((kind, value),) = self._given().items()
        return to_format(kind, value)

    def _given(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True)


def to_format(kind: str, value: Any) -> ResponseFormat:
    """The `response_format` of a field of `StructuredOutputs`."""
    if kind == "regex":
        return RegexFormat(type="regex", regex=value)
    if kind == "grammar":
        return GrammarFormat(type="grammar", grammar=value)
    if kind == "choice":
        grammar = "start: " + " | ".join(map(_dump, value))
        return GrammarFormat(type="grammar", grammar=grammar)
    schema = JsonSchema.model_validate({"name": "json", "schema": value})
    return JsonSchemaFormat(type="json_schema", json_schema=schema)


def _or_any_object(parameters: Any) -> Any:
    return {"type": "object"} if parameters is None else parameters


class Function(Plain):
    """What a tool is called and takes."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Annotated[dict[str, Any], BeforeValidator(_or_any_object)] = Field(
        default_factory=lambda: {"type": "object"}
    )
    strict: bool | None = None
    cache_control: Any = ignored()


class Tool(Plain):
    """A function that the model may ask for."""

    type: Literal["function"]
    function: Function
    cache_control: Any = ignored()


class FunctionName(Plain):
    """A function by its name."""

    name: str


class NamedTool(Plain):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Plain):
    """A call in the history; one without arguments may leave them out."""

    name: str
    arguments: str | dict[str, Any] | None = None
    parsed_arguments: Any = ignored()
    provider_specific_fields: Any = ignored()


class ToolCall(Plain):
    """A call in the history."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None
    index: Any = ignored()
    cache_control: Any = ignored()
    extra_content: Any = ignored()
    provider_specific_fields: Any = ignored()

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        try:
            arguments = json.loads(self._arguments())
        except (ValueError, RecursionError):
            raise ValueError("function.arguments must be a JSON text") from None
        check_json(arguments)
        return self

    def to_text(self) -> str:
        """The call as the model writes it."""
        name = _dump(self.function.name)
        arguments = _spaced(self._arguments())
        return f'{OPENING}{{"name": {name}, "arguments": {arguments}}}{CLOSING}'

    def _arguments(self) -> str:
        given = self.function.arguments or "{}"
        return given if isinstance(given, str) else _dump(given)


class AllowedTools(Plain):
    """Some of the tools, which may or must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Plain):
    """OpenAI's form of a choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


def describe_tools(tools: Sequence[Tool]) -> str:
    """What the model is told about its tools, in the form that Hermes and Qwen are trained on."""
    lines = [_dump(tool.model_dump(exclude_none=True)) for tool in tools]
    return "\n".join(
        [
            "# Tools\n\nYou may call one of these functions:",
            "<tools>",
            *lines,
            "</tools>",
            "\nTo call one, answer with nothing but",
            f'{OPENING}{{"name": <function-name>, "arguments": <args-json-object>}}{CLOSING}',
        ]
    )


def tool_grammar(tools: list[Tool], *, is_required: bool, is_one: bool) -> str:
    """Lark grammar of calls of tools, or else of text that does not begin with ``<``.

    The parameters of each tool are a document of their own, so what they refer to stays in place.

    Args:
        tools: that may be called.
        is_required: whether the answer must be a call.
        is_one: whether it holds one call at most.
    """
    calls = [f"call{i}" for i in range(len(tools))]
    lines = [
        "start: " + ("calls" if is_required else "calls | TEXT"),
        "calls: call" if is_one else f"calls: call ({json.dumps(_BETWEEN)} call)*",
        "call: " + " | ".join(calls),
        r"TEXT: /[^<](.|\n)*/",
    ]
    for name, tool in zip(calls, tools, strict=True):
        opening = json.dumps(f'{OPENING}{{"name": {_dump(tool.function.name)}, "arguments": ')
        lines.append(f"{name}: {opening} {name}_arguments {json.dumps('}' + CLOSING)}")
        schema = json.dumps(_arguments_schema(tool.function.parameters))
        lines.append(f"{name}_arguments: %json {schema}")
    return "\n".join(lines)


def tool_in_line(number: int) -> int:
    """The tool whose schema stands in a line, counted from 1, of `tool_grammar`."""
    return (number - _FIRST_SCHEMA_LINE) // 2


def _arguments_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of arguments, which are an object, in the spelling of `_spaced`."""
    parameters = without_notes(parameters)
    typed = parameters if "$ref" in parameters else {"type": "object"} | parameters
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return typed | {"x-guidance": spelling}


def parse_calls(text: str, *, is_cut: bool = False) -> list[tuple[str, str]]:
    """Names and arguments (JSON texts, as they were written) of the calls that an answer is.

    Args:
        text: the answer.
        is_cut: whether its length ended it: then the calls that are whole.
    """
    found = _CALLS.match(text)
    if found is None or (found.end() < len(text) and not is_cut):
        return []
    return _CALL.findall(found[0])


def may_be_call(text: str) -> bool:
    """Whether an answer that begins so may become a call."""
    return text.startswith(OPENING) or OPENING.startswith(text)


def _spaced(text: str) -> str:
    """A JSON text with the spaces that models are trained on; its values stay as they are spelled,
    but for characters that an ASCII encoder has escaped."""
    return _JSON_PIECE.sub(_spaced_piece, text)


def _spaced_piece(found: re.Match[str]) -> str:
    text, mark = found.groups()
    if text is None:
        return f"{mark} " if mark else ""
    return _dump(json.loads(text)) if "\\u" in text else text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
