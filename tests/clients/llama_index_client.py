"""LlamaIndex' OpenAILike: chats, streams, completions, tools, structured answers."""

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from shared import MODEL, QUESTION, URL, Owner, set_light

options = {"model": MODEL, "api_base": URL, "api_key": "none", "max_retries": 0, "timeout": 120}
chat = OpenAILike(
    **options, is_chat_model=True, is_function_calling_model=True, max_tokens=200, temperature=0
)
short = OpenAILike(**options, is_chat_model=True, max_tokens=8, temperature=0)
history = [ChatMessage(role="user", content=QUESTION)]

whole = short.chat(history)
streamed = list(short.stream_chat(history))
assert streamed[-1].message.content == whole.message.content
short.chat([*history, whole.message, *history])

text = OpenAILike(**options, is_chat_model=False, max_tokens=8, temperature=0)
assert list(text.stream_complete("abc"))[-1].text == text.complete("abc").text

light = FunctionTool.from_defaults(set_light)
called = chat.chat_with_tools([light], chat_history=history, tool_required=True)
(call, *_) = chat.get_tool_calls_from_response(called)
assert isinstance(call.tool_kwargs["on"], bool)
result = ChatMessage(role="tool", content="done", additional_kwargs={"tool_call_id": call.tool_id})
chat.chat_with_tools([light], chat_history=[*history, called.message, result])

assert isinstance(chat.structured_predict(Owner, PromptTemplate("Who has a pet?")), Owner)
