"""LangChain's ChatOpenAI and OpenAI: chats, streams, tools, three kinds of structured output."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from shared import MODEL, QUESTION, URL, Owner, set_light

options = {"model": MODEL, "base_url": URL, "api_key": "none", "max_retries": 0, "timeout": 120}
chat = ChatOpenAI(**options, max_tokens=200, temperature=0)
history = [SystemMessage("Be brief."), HumanMessage(QUESTION)]

whole = ChatOpenAI(**options, max_tokens=8).invoke(history)
chunks = list(ChatOpenAI(**options, max_tokens=8, stream_usage=True).stream(history))
assert "".join(chunk.content for chunk in chunks) == whole.content
assert chunks[-1].usage_metadata or any(chunk.usage_metadata for chunk in chunks)

light = tool(set_light)
for strict in (None, True):
    called = chat.bind_tools([light], tool_choice="set_light", strict=strict).invoke(history)
    (call,) = called.tool_calls
    result = light.invoke(call)
    assert isinstance(result, ToolMessage) and isinstance(call["args"]["on"], bool)
    answer = chat.bind_tools([light]).invoke([*history, called, result], max_tokens=8)
    assert isinstance(answer, AIMessage)

joined = None
for chunk in chat.bind_tools([light], tool_choice="any").stream(history):
    joined = chunk if joined is None else joined + chunk
assert joined.tool_calls[0]["name"] == "set_light"
chat.bind_tools([light]).invoke(
    [*history, joined, light.invoke(joined.tool_calls[0])], max_tokens=8
)

for method in ("json_schema", "function_calling"):
    assert isinstance(chat.with_structured_output(Owner, method=method).invoke(history), Owner)

text = OpenAI(**options, max_tokens=8, temperature=0)
assert text.invoke("abc") == "".join(text.stream("abc"))
