"""An answer that is being written, its thought apart from what it says. No torch, no Ray."""

from a2d_ray.data.thoughts import CLOSE, OPEN, split_prompt

__all__ = ["CLOSE", "OPEN", "ThoughtStream", "open_block"]


def open_block(prompt: str) -> str:
    """The opening mark that a generation prompt ends with, '' if it has none or has closed it."""
    _, block, is_closed = split_prompt(prompt)
    return "" if is_closed else block


class ThoughtStream:
    """Splits a growing text into thought and answer, neither of which is ever taken back.

    A text holds a thought if it begins with ``<think>``, white space aside. One that is never
    closed is all thought. White space around both marks belongs to neither part. What is returned,
    joined, does not depend on how the text was cut.

    Args:
        before: what the prompt holds of the answer already: an opening mark, or its beginning.
    """

    def __init__(self, before: str = "") -> None:
        self._held = ""  # may be part of a mark, or white space in front of one
        self._is_open = self._is_decided = self._starts = False
        self._num_pushed = self._num_thought = 0
        if before:
            self.push(before)
            self._num_pushed = self._num_thought = 0

    @property
    def is_open(self) -> bool:
        """Whether what comes next belongs to the thought."""
        return self._is_open

    @property
    def may_open(self) -> bool:
        """Whether nothing is there yet, so that a thought may begin."""
        return not self._is_decided

    @property
    def num_characters(self) -> int:
        """Of what was pushed: up to the end of a closed thought, its marks included; else 0."""
        return self._num_thought

    def push(self, text: str) -> tuple[str, str]:
        """Takes the next text; thought and answer that are now certain."""
        self._held += text
        self._num_pushed += len(text)
        if not self._is_decided:
            self._decide()
        thought = self._thought() if self._is_open else ""
        return thought, self._answer()

    def finish(self) -> tuple[str, str]:
        """What was held back; call it once, at the end."""
        held = self._held
        self._held = ""
        return (held.rstrip(), "") if self._is_open else ("", held)

    def _decide(self) -> None:
        """Whether the text begins with a thought, as soon as that is certain."""
        begun = self._held.lstrip()
        if OPEN.startswith(begun):
            self._is_decided = begun == OPEN
        else:
            self._is_decided = True
        if self._is_decided and begun.startswith(OPEN):
            self._is_open = self._starts = True
            self._held = begun.removeprefix(OPEN)

    def _thought(self) -> str:
        if self._starts:
            self._held = self._held.lstrip()
            self._starts = not self._held
        thought, mark, rest = self._held.partition(CLOSE)
        if mark:
            self._is_open = False
            self._starts = True  # of the answer
            self._held = rest
            self._num_thought = self._num_pushed - len(rest)
            return thought.rstrip()
        end = len(self._held) - _num_begun(self._held, CLOSE)
        end = len(self._held[:end].rstrip())
        thought, self._held = self._held[:end], self._held[end:]
        return thought

    def _answer(self) -> str:
        if self._is_open or not self._is_decided:
            return ""
        if self._starts:
            self._held = self._held.lstrip()
            self._starts = not self._held
        answer, self._held = self._held, ""
        return answer


def _num_begun(text: str, mark: str) -> int:
    """Characters at the end of a text that a mark may begin with."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)
