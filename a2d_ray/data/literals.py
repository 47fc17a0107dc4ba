"""Special tokens that somebody typed into a message: they are text there, not special tokens.

Without this, a message that holds ``<|im_end|>`` would end its turn, and could open another one in
the name of the system.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from a2d_ray.data.thoughts import THOUGHT_KEY


class LiteralSpecials:
    """Hides the special tokens that messages spell out, and encodes them as ordinary text.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        marks = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        marks |= set(tokenizer.all_special_tokens)
        self._marks = sorted(filter(None, marks), key=len, reverse=True)  # the longest wins
        self._special = re.compile("|".join(map(re.escape, self._marks)) or r"(?!)")
        # Nobody can guess it, so nobody can write it.
        self._name = uuid.uuid4().hex
        self._hidden = re.compile(rf"{self._name}-(\d+)-")
        self._texts: list[str] = []

    def are_in(self, text: str) -> bool:
        """Whether a text spells out a special token; much faster than hiding."""
        return any(mark in text for mark in self._marks)

    def hide_in(self, text: str) -> str:
        """The text with a stand-in for every special token."""
        return self._special.sub(self._stand_in, text) if self.are_in(text) else text

    def hide(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """The messages with a stand-in for every special token in their contents and thoughts."""
        return [
            {
                key: self.hide_in(value) if key in ("content", THOUGHT_KEY) else value
                for key, value in message.items()
            }
            for message in messages
        ]

    def is_hidden_in(self, text: str) -> bool:
        """Whether rendered text holds a stand-in, so that it needs `encode`."""
        return self._name in text

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text: stand-ins become the text that they stand for."""
        ids: list[int] = []
        parts = self._hidden.split(text)  # text, number, text, number, ..., text
        for index, part in enumerate(parts):
            is_hidden = index % 2 == 1
            ids += self._tokenizer(
                self._texts[int(part)] if is_hidden else part,
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,
                split_special_tokens=is_hidden,
            ).input_ids
        return ids

    def _stand_in(self, found: re.Match[str]) -> str:
        self._texts.append(found[0])
        return f"{self._name}-{len(self._texts) - 1}-"
