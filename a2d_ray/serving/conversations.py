"""Which requests belong together, so that one replica gets them and finds their prompt cached."""

import hashlib
from collections.abc import Sequence

from a2d_ray.serving.protocol import GenerationRequest

_NUM_CHARACTERS = 512
_NUM_TOKENS = 128


def conversation_key(request: GenerationRequest, cache_salt: str) -> str:
    """A hash of how the prompt begins: equal for all turns of a conversation.

    A chat begins with its messages up to the first of the user; a text with its first 512
    characters, or 128 tokens. Prompts of different salts share no cache, and no key.

    Args:
        request: with one or more prompts; the first one decides.
        cache_salt: of the caller.
    """
    prompt = request.prompts()[0]
    return hashlib.sha256(
        repr((request.model, cache_salt, _beginning(prompt))).encode()
    ).hexdigest()


def _beginning(prompt: Sequence[object]) -> object:
    if isinstance(prompt, str):
        return prompt[:_NUM_CHARACTERS]
    opening: list[object] = []
    for item in prompt[:_NUM_TOKENS]:
        if isinstance(item, str):  # before a hole
            return item[:_NUM_CHARACTERS]
        opening.append(item)
        if isinstance(item, dict) and item["role"] == "user":
            break
    return opening
