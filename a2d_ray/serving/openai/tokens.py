"""Text to token ids and back, in vLLM's forms."""

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from a2d_ray.http.errors import RequestError
from a2d_ray.serving.openai.chat_protocol import ChatMessage, chat_prompt
from a2d_ray.serving.openai.options import Strict, ignored, only
from a2d_ray.serving.openai.protocol import RequestPrompt, TemplateOptions
from a2d_ray.serving.openai.structured import Tool


class TokenizeRequest(Strict):
    """Body of ``POST /tokenize``: a text, or a chat as the model's template renders it."""

    model: str
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = Field(None, max_length=128)
    chat_template_kwargs: TemplateOptions | None = Field(None, max_length=16)
    add_generation_prompt: Any = only(True)
    continue_final_message: Any = only(False)
    add_special_tokens: Any = ignored()  # as the model's tokenizer and template have it
    return_token_strs: Any = only(False)
    chat_template: Any = only()
    mm_processor_kwargs: Any = only({})

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        if self.messages is None:
            for field in ("tools", "chat_template_kwargs"):
                if getattr(self, field):
                    raise RequestError(f"{field} needs messages", param=field)
        return self

    def prompt_field(self) -> str:
        """The field that holds the prompt."""
        return "prompt" if self.messages is None else "messages"

    def to_prompt(self) -> RequestPrompt:
        """What `LanguageModel.encode` takes."""
        if self.messages is None:
            return self.prompt or ""
        return chat_prompt(self.messages, self.tools)

    def template_options(self) -> TemplateOptions:
        """What the chat template reads besides the messages."""
        return self.chat_template_kwargs or {}


class Tokens(BaseModel):
    """Answer to ``POST /tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(Strict):
    """Body of ``POST /detokenize``."""

    model: str
    tokens: list[int]


class Detokenized(BaseModel):
    """Answer to ``POST /detokenize``."""

    prompt: str
