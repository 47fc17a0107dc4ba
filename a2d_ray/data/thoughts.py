"""The reasoning in front of an answer: one form of it, whatever a data set or a client calls it.

In a row an answer is one text, its thought in a block before it; in a request it may be that, too.
Templates differ in what they do with it, so they are given thought and answer apart.
"""

import re
from collections.abc import Mapping
from typing import Any

THOUGHT_KEY = "reasoning_content"
THOUGHT_KEYS = (THOUGHT_KEY, "reasoning", "thinking")
OPEN = "<think>"
CLOSE = "</think>"
_THOUGHT = re.compile(rf"\s*(?:{OPEN})?((?:(?!{OPEN}).)*?){CLOSE}\s*", re.DOTALL)
_EMPTY_BLOCK = re.compile(rf"{OPEN}\s*{CLOSE}\s*")
_PROMPT_BLOCK = re.compile(rf"{OPEN}\s*(?P<closed>{CLOSE}\s*)?$")


def with_thought(thought: str, answer: str) -> str:
    """An answer behind its thought. Source: the form of Qwen3's chat template."""
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{answer.lstrip()}"


def split_thought(text: str) -> tuple[str, str]:
    """Thought ('' if there is none) and answer of a text; the opening mark may be missing, as
    where the generation prompt ended with it."""
    found = _THOUGHT.match(text) if CLOSE in text else None
    return (found[1].strip(), text[found.end() :]) if found else ("", text)


def apart(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose thought, if it is an answer with one, stands in `THOUGHT_KEY`."""
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or message.get(THOUGHT_KEY):
        return dict(message)
    thought, answer = split_thought(content)
    return {**message, "content": answer, THOUGHT_KEY: thought} if thought else dict(message)


def split_prompt(prompt: str) -> tuple[str, str, bool]:
    """A generation prompt, cut before the think block that it may end with.

    Returns:
        What comes before the block, the block, and whether the block is closed: then the model is
        told not to think.
    """
    found = _PROMPT_BLOCK.search(prompt)
    if found is None:
        return prompt, "", False
    return prompt[: found.start()], found[0], found["closed"] is not None


def begin_answer(thought: str, answer: str, block: str, *, is_closed: bool) -> str:
    """How an answer goes on behind a prompt that ends with `block`: after a thought without an
    answer with more of the thought. Arguments as of `place_thought`."""
    if not thought:
        return answer
    placed = place_thought(thought, answer, block, is_closed=is_closed)
    return placed if answer or is_closed else placed[: placed.rindex(CLOSE)].rstrip()


def place_thought(thought: str, answer: str, block: str, *, is_closed: bool) -> str:
    """What the model is to generate behind a prompt that ends with `block`: one think block.

    Args:
        thought: '' if there is none.
        answer: as the template renders it, an empty block of the template's in front or not.
        block: of the prompt, '' if it has none.
        is_closed: whether that is closed.
    """
    own = _EMPTY_BLOCK.match(answer)
    bare = answer[own.end() :] if own else answer
    if is_closed:
        return bare
    if block:
        return with_thought(thought, bare).removeprefix(f"{OPEN}\n")
    return with_thought(thought, bare) if thought else answer
