"""The openai package: streams, tools, parsed answers, messages sent back."""

import json

from openai import OpenAI
from shared import LIGHT, MODEL, QUESTION, THOUGHT, URL, Owner

client = OpenAI(base_url=URL, api_key="none", max_retries=0, timeout=120)
CHAT = {"model": MODEL, "max_tokens": 200}
user = {"role": "user", "content": QUESTION}

owner = client.chat.completions.parse(**CHAT, messages=[user], response_format=Owner)
assert isinstance(owner.choices[0].message.parsed, Owner)

with client.chat.completions.stream(**CHAT, messages=[user], response_format=Owner) as stream:
    kinds = [event.type for event in stream]
    parsed = stream.get_final_completion().choices[0].message.parsed
assert parsed == owner.choices[0].message.parsed and "content.done" in kinds

options = {"tools": [LIGHT], "tool_choice": "required", "parallel_tool_calls": False}
whole = client.chat.completions.create(**CHAT, messages=[user], **options).choices[0].message
with client.chat.completions.stream(**CHAT, messages=[user], **options) as stream:
    for _ in stream:
        pass
    streamed = stream.get_final_completion().choices[0].message
for message in (whole, streamed):
    (call,) = message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"on"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    sent_back = message.to_dict() if message is streamed else message
    answer = client.chat.completions.create(
        **CHAT | {"max_tokens": 8}, messages=[user, sent_back, result], tools=[LIGHT]
    )
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")

forced = {"guided_regex": THOUGHT}
thought = client.chat.completions.create(**CHAT, messages=[user], extra_body=forced)
message = thought.choices[0].message
assert (message.reasoning_content, message.content) == ("R", "hi")
chunks = client.chat.completions.create(**CHAT, messages=[user], stream=True, extra_body=forced)
deltas = [chunk.choices[0].delta for chunk in chunks]
assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "R"
again = client.chat.completions.create(
    **CHAT | {"max_tokens": 2}, messages=[user, message.to_dict(), user]
)
assert again.usage.prompt_tokens > thought.usage.total_tokens

assert client.models.list().data[0].id == MODEL
