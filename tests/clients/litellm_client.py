"""LiteLLM, by the providers `openai` and `hosted_vllm`: streams, tools, schemas, reasoning."""

import json

import litellm
from shared import LIGHT, MODEL, QUESTION, THOUGHT, URL, Owner

litellm.telemetry = False
user = {"role": "user", "content": QUESTION}

for provider in ("openai", "hosted_vllm"):
    options = {"model": f"{provider}/{MODEL}", "api_base": URL, "api_key": "none", "timeout": 120}
    short = {**options, "max_tokens": 8, "messages": [user]}
    whole = litellm.completion(**short).choices[0].message
    chunks = list(litellm.completion(**short, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.content
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == text

    long = {**options, "max_tokens": 200, "messages": [user]}
    called = litellm.completion(**long, tools=[LIGHT], tool_choice="required").choices[0].message
    (call, *_) = called.tool_calls
    assert set(json.loads(call.function.arguments)) == {"on"}
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": "set_light", "content": "done"}
        for call in called.tool_calls
    ]
    for message in (called, called.model_dump()):
        litellm.completion(**short | {"messages": [user, message, *results]}, tools=[LIGHT])

    owner = litellm.completion(**long, response_format=Owner).choices[0].message.content
    Owner.model_validate_json(owner)

    forced = {"extra_body": {"guided_regex": THOUGHT}}
    thought = litellm.completion(**long, **forced).choices[0].message
    assert (thought.reasoning_content, thought.content) == ("R", "hi"), thought
    chunks = list(litellm.completion(**long, **forced, stream=True))
    built = litellm.stream_chunk_builder(chunks).choices[0].message
    assert (built.reasoning_content, built.content) == ("R", "hi"), built
    litellm.completion(**short | {"messages": [user, built.model_dump(), user]})
