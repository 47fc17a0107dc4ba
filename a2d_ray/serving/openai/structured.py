"""Answers that obey a form: JSON schemas, grammars, calls of tools.

The form becomes a grammar of llguidance (`a2d_ray.serving.model.grammars`); under a rule of
`GRAMMAR_RULES` only what it accepts is committed.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from a2d_ray.http.bodies import Plain, check_json

OPENING = "<tool_call>\n"
CLOSING = "\n</tool_call>"


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
    except ValueError:
        raise ValueError("a text must be a JSON schema") from None


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


class Function(Plain):
    """What a tool is called and takes."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    strict: bool | None = None


class Tool(Plain):
    """A function that the model may ask for."""

    type: Literal["function"]
    function: Function


class FunctionName(Plain):
    """A function by its name."""

    name: str


class NamedTool(Plain):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Plain):
    """A call in the history."""

    name: str
    arguments: str


class ToolCall(Plain):
    """A call in the history."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        try:
            arguments = json.loads(self.function.arguments)
        except (ValueError, RecursionError):
            raise ValueError("function.arguments must be a JSON text") from None
        check_json(arguments)
        return self

    def to_text(self) -> str:
        """The call as the model writes it."""
        arguments = json.loads(self.function.arguments)
        return OPENING + _dump({"name": self.function.name, "arguments": arguments}) + CLOSING


ToolChoice = Literal["none", "auto", "required"] | NamedTool


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


def tool_grammar(tools: list[Tool], *, is_required: bool) -> str:
    """Lark grammar of a call of a tool, or else of text that does not begin with ``<``."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": tool.function.parameters,
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
        for tool in tools
    ]
    rules = [f"call{i}: %json {json.dumps(schema)}" for i, schema in enumerate(calls)]
    choice = " | ".join(f"call{i}" for i in range(len(calls)))
    start = "start: call" if is_required else "start: call | TEXT"
    opening = json.dumps(OPENING)
    closing = json.dumps(CLOSING)
    return "\n".join(
        [start, f"call: {opening} ({choice}) {closing}", r"TEXT: /[^<](.|\n)*/", *rules]
    )


def parse_call(text: str) -> tuple[str, str] | None:
    """Name and arguments (a JSON text) of the call that an answer is; None if it is none."""
    if not (text.startswith(OPENING) and text.endswith(CLOSING)):
        return None
    call = json.loads(text.removeprefix(OPENING).removesuffix(CLOSING))
    return call["name"], _dump(call["arguments"])


def may_be_call(text: str) -> bool:
    """Whether an answer that begins so may become a call."""
    return text.startswith(OPENING) or OPENING.startswith(text)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
