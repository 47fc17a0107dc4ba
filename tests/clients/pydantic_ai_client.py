"""pydantic-ai: agents with tools, streams, two kinds of structured output, thoughts."""

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from shared import MODEL, QUESTION, THOUGHT, URL, Owner, set_light

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
long = {"max_tokens": 200, "temperature": 0.0}

short = {"max_tokens": 8, "extra_body": {"guided_regex": "[a-z]{5}"}}
plain = Agent(model, instructions="Be brief.", model_settings=short)
first = plain.run_sync(QUESTION)
plain.run_sync("And then?", message_history=first.all_messages())
streamed = plain.run_stream_sync(QUESTION)
assert streamed.get_output() == first.output

for output in (ToolOutput(Owner), NativeOutput(Owner)):
    agent = Agent(model, output_type=output, model_settings=long)
    result = agent.run_sync(QUESTION)
    assert isinstance(result.output, Owner)
    agent.run_sync("And then?", message_history=result.all_messages())

agent = Agent(model, output_type=ToolOutput(Owner), tools=[set_light], model_settings=long)
try:  # a random model may switch the light for ever
    assert isinstance(agent.run_sync(QUESTION).output, Owner)
except UnexpectedModelBehavior as error:
    assert "exceed" in str(error).lower(), error

forced = {**long, "extra_body": {"guided_regex": THOUGHT}}
thinking = Agent(model, model_settings=forced).run_sync(QUESTION)
thoughts = [p for m in thinking.new_messages() for p in m.parts if isinstance(p, ThinkingPart)]
assert thinking.output == "hi" and [part.content for part in thoughts] == ["R"]
plain.run_sync("And then?", message_history=thinking.all_messages())
