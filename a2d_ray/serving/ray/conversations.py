"""Which requests belong together, so that one replica gets them and finds their prompt cached;
and when there are too many of them for one replica.
"""

import hashlib
import math
from collections.abc import Sequence

from a2d_ray.serving.openai.protocol import GenerationRequest

_NUM_CHARACTERS = 512
_NUM_TOKENS = 128
_FAIR_SHARES = 1.25  # that a replica may hold
_NUM_SPARE = 2  # requests beyond them: the few of one conversation never move


def conversation_key(request: GenerationRequest, cache_salt: str) -> str:
    """A hash of `prompt_cache_key`, or else of how the prompt begins: equal for all turns.

    A chat begins with its messages up to the first of the user; a text with its first 512
    characters, or 128 tokens. Prompts of different salts share no cache, and no key.

    Args:
        request: with one or more prompts; the first one decides.
        cache_salt: of the caller.
    """
    given = request.prompt_cache_key
    shared = (given,) if given is not None else _beginning(request.prompts()[0])
    options = sorted(request.template_options().items())
    return hashlib.sha256(repr((request.model, cache_salt, options, shared)).encode()).hexdigest()


def by_bounded_load(loads: Sequence[int]) -> list[int]:
    """Indices of replicas in the order in which they are to be asked for one more request.

    Replicas that would then hold at most ``ceil(1.25 (sum(loads) + 1) / len(loads)) + 2`` requests
    come first, at least one always does; both groups stay in the order in which they are given.

    Args:
        loads: requests under way at each replica, the conversation's own replica first.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018.
    """
    bound = math.ceil(_FAIR_SHARES * (sum(loads) + 1) / max(len(loads), 1)) + _NUM_SPARE
    return sorted(range(len(loads)), key=lambda index: loads[index] >= bound)


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
