"""Instructor: answers as models, by tools and by schema, whole and while they are written."""

import instructor
from openai import OpenAI
from shared import MODEL, QUESTION, URL, Owner

client = OpenAI(base_url=URL, api_key="none", max_retries=0, timeout=120)
options = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 200,
    "temperature": 0,
    "max_retries": 0,
}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
    asking = instructor.from_openai(client, mode=mode)
    assert isinstance(asking.chat.completions.create(**options, response_model=Owner), Owner)

asking = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
partial = list(asking.chat.completions.create_partial(**options, response_model=Owner))
assert Owner.model_validate(partial[-1].model_dump())
