"""Requests of chats, in OpenAI's names. Imports nothing heavy."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from a2d_ray.http.errors import RequestError
from a2d_ray.serving.openai.options import Strict, ignored, only
from a2d_ray.serving.openai.protocol import GenerationRequest, RequestPrompt, TemplateOptions
from a2d_ray.serving.openai.structured import (
    AllowedToolsChoice,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
    describe_tools,
)


class TextPart(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str
    annotations: Any = ignored()
    cache_control: Any = ignored()
    prompt_cache_breakpoint: Any = ignored()


class ChatMessage(Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(
        None, description="The thought before the answer; the prompt holds it as it was written."
    )
    reasoning: str | None = Field(None, description="The same, under another name.")
    # What other servers and clients write beside it.
    name: Any = ignored()
    id: Any = ignored()
    type: Any = ignored()
    index: Any = ignored()
    status: Any = ignored()
    metadata: Any = ignored()
    annotations: Any = ignored()
    cache_control: Any = ignored()
    extra_content: Any = ignored()
    provider_specific_fields: Any = ignored()
    parsed: Any = ignored()
    reasoning_details: Any = ignored()
    thinking_blocks: Any = ignored()
    # What a model would read.
    function_call: Any = only()
    refusal: Any = only("")
    audio: Any = only()
    prefix: Any = only(False)

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to role 'assistant'")
        thoughts = {self.reasoning_content, self.reasoning} - {None, ""}
        if thoughts and self.role != "assistant":
            raise ValueError("reasoning_content belongs to role 'assistant'")
        if len(thoughts) > 1:
            raise ValueError("reasoning_content and reasoning differ: send one of them")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        return self

    def to_chat(self) -> dict[str, str]:
        """The message as chat templates take it: calls and results of tools are text there."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        lines = [text] if text or not self.tool_calls else []
        text = "\n".join(lines + [call.to_text() for call in self.tool_calls or []])
        if self.role == "tool":
            return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
        turn = {"role": "system" if self.role == "developer" else self.role, "content": text}
        thought = self.reasoning_content or self.reasoning
        return turn | {"reasoning_content": thought} if thought else turn


def chat_prompt(messages: Sequence[ChatMessage], tools: Sequence[Tool] | None) -> RequestPrompt:
    """A chat as its template takes it; the tools are part of what the system says."""
    chat = list[dict[str, str]]()
    for last, message in zip([None, *messages], messages, strict=False):
        turn = message.to_chat()
        if last is not None and last.role == message.role == "tool":
            chat[-1]["content"] += f"\n{turn['content']}"  # results of one answer are one turn
        else:
            chat.append(turn)
    if tools:
        told = describe_tools(tools)
        if chat[0]["role"] == "system":
            chat[0]["content"] += f"\n\n{told}"
        else:
            chat.insert(0, {"role": "system", "content": told})
    return chat


class ChatCompletionRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="The last message is how the answer begins (vLLM's field)."
    )
    chat_template_kwargs: TemplateOptions | None = Field(
        None, max_length=16, description="What the model's template reads: enable_thinking, say."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="false: one call at most. Otherwise an answer may hold several."
    )
    functions: Any = only([])
    function_call: Any = only("none", "auto")
    modalities: Any = only(["text"])
    audio: Any = only()
    reasoning_effort: Any = only("none", "medium")
    verbosity: Any = only("medium")
    web_search_options: Any = only()
    separate_reasoning: bool | None = Field(
        None,
        description="true: what the answer thinks stands in reasoning_content, apart from content "
        "(SGLang's field). Left out: as the model is served.",
    )
    include_reasoning: bool | None = Field(
        None, description="false: what the answer thinks is left out (vLLM's field)."
    )
    # Of other servers, or, as a prediction, what only speed depends on.
    prediction: Any = ignored()
    stream_reasoning: Any = ignored()
    add_special_tokens: Any = only(False)
    chat_template: Any = only()
    documents: Any = only([])
    mm_processor_kwargs: Any = only({})
    reasoning: Any = only({"effort": "none"}, {"effort": "medium"}, {"enabled": False})
    thinking: Any = only({"type": "disabled"})

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        lengths = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(lengths) > 1:
            raise RequestError(
                "max_tokens and max_completion_tokens mean the same: send one of them",
                param="max_completion_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        if self.add_generation_prompt is (bool(self.continue_final_message)):
            raise RequestError(
                "either the answer begins (add_generation_prompt) or the last message goes on "
                "(continue_final_message): set one of them",
                param="add_generation_prompt",
            )
        if self.separate_reasoning is self.include_reasoning is False:
            raise RequestError(
                "include_reasoning=false leaves out reasoning, which separate_reasoning=false does "
                "not tell apart: set one of them",
                param="include_reasoning",
            )
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise RequestError(f"the names of tools must differ, got {names}", param="tools")
        choice = self.tool_choice
        if choice not in (None, "none", "auto") and not names:
            raise RequestError("tool_choice needs tools", param="tool_choice")
        for name in self._named_tools():
            if name not in names:
                raise RequestError(
                    f"tool_choice names {name!r}, which is none of {names}", param="tool_choice"
                )
        for field in self.forms() if self.usable_tools() else ():
            raise RequestError(
                f"{field} and tools exclude each other: send tool_choice='none' or no {field}",
                param=field,
            )

    def continues_answer(self) -> bool:
        """Whether the last message is how the answer begins."""
        return bool(self.continue_final_message)

    def has_begun(self) -> bool:
        """Whether the prompt's last segment is the beginning of the answer."""
        last = self.messages[-1].to_chat()
        return self.continues_answer() and any(last[key] for key in last if key != "role")

    def hides_reasoning(self) -> bool:
        """Whether a thought that is told apart is left out."""
        return self.include_reasoning is False

    def separates_reasoning(self, default: bool) -> bool:
        """Whether the answer's thought is told apart; `default` of the served model."""
        if self.include_reasoning is False:
            return True
        return default if self.separate_reasoning is None else self.separate_reasoning

    def usable_tools(self) -> list[Tool]:
        """The tools that this answer may call."""
        if self.tool_choice == "none":
            return []
        wanted = self._named_tools()
        return [t for t in self.tools or [] if not wanted or t.function.name in wanted]

    def _named_tools(self) -> list[str]:
        """Names of the tools that `tool_choice` leaves; empty: all of them."""
        if isinstance(self.tool_choice, NamedTool):
            return [self.tool_choice.function.name]
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        return []

    def is_call_required(self) -> bool:
        """Whether the answer must be a call."""
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice not in (None, "auto", "none")

    def is_one_call(self) -> bool:
        """Whether the answer may hold one call only: what is asked for, or a tool by its name."""
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool)

    def constraint(self) -> str | None:
        """The field that gives the answer a form; None: it is free."""
        return "tools" if self.usable_tools() else super().constraint()

    def prompts(self) -> list[RequestPrompt]:
        """The chat, as one prompt."""
        return [chat_prompt(self.messages, self.tools)]

    def template_options(self) -> TemplateOptions:
        """What the chat template reads besides the messages."""
        return self.chat_template_kwargs or {}

    def prompt_field(self) -> str:
        """The field that holds the prompts."""
        return "messages"

    def num_logprobs(self) -> int | None:
        """Alternatives to report beside each token's log-probability; None: report nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def max_new_tokens(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    def length_field(self) -> str:
        """The field that says how long the answer may become."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
