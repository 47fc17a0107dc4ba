"""Token ids to text, piece by piece: UTF-8 safe, cut at stop strings. No torch, no Ray."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of `token_ids` without special tokens, spaces as they are."""
    return tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def cut_at_stop(text: str, stop: Iterable[str], *, keeps_stop: bool = False) -> str:
    """`text` up to where the first of the `stop` strings begins; or ends, if it is kept."""
    start, found = _first_stop(text, stop)
    return text[: start + len(found) * keeps_stop]


def _first_stop(text: str, stop: Iterable[str]) -> tuple[int, str]:
    """Where the first of the strings begins, and the shortest that begins there; else the end."""
    starts = ((start, len(s), s) for s in stop if (start := text.find(s)) >= 0)
    start, _, found = min(starts, default=(len(text), 0, ""))
    return start, found


class TextStream:
    """Turns a growing answer into text that never has to be taken back.

    The pieces that `push` and `finish` return, joined, are
    ``cut_at_stop(decode(tokenizer, all_ids), stop)``, however the ids were grouped. Held back are
    an unfinished multi-byte character and text that may be the beginning of a stop string.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop: texts that end the answer; none may be empty.
        keeps_stop: whether the one that ends it is part of it.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), *, keeps_stop: bool = False
    ) -> None:
        if "" in stop:
            raise ValueError("stop must hold texts that are not empty")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._keeps_stop = keeps_stop
        self._special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._ids: list[int] = []
        # ids[anchor:] is decoded at each push; its first `_num_read` characters were read before.
        # Between anchor and boundary lies context: some decoders drop a space at their beginning.
        self._anchor = self._boundary = self._num_read = 0
        self._num_given = 0  # characters returned
        self._held = ""  # decoded, but may begin a stop string
        self._stopped_at: int | None = None
        self.stop_text: str | None = None  # what it was stopped by

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was met: no further text will come."""
        return self._stopped_at is not None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far; after a stop, the fewest whose text reaches the cut."""
        return len(self._ids) if self._stopped_at is None else self._stopped_at

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes the next tokens; returns the text that is now certain (may be empty)."""
        if self.is_stopped:
            return ""
        self._ids.extend(token_ids)
        self._held += self._read(self._num_settled())
        return self._take(self._num_surely_no_stop())

    def finish(self) -> str:
        """Returns what was held back; call it once, when no tokens are left."""
        if self.is_stopped:
            return ""
        text = decode(self._tokenizer, self._ids[self._anchor :])
        self._held += text[self._num_read :]
        self._num_read = len(text)
        return self._take(len(self._held))

    def num_tokens_of(self, num_characters: int) -> int:
        """The fewest tokens whose text has so many characters of what was returned."""
        text = decode(self._tokenizer, self._ids)[:num_characters]
        return bisect_left(
            range(len(self._ids)),
            True,
            key=lambda n: decode(self._tokenizer, self._ids[:n]).startswith(text),
        )

    def _num_settled(self) -> int:
        """Number of ids before a trailing run of byte tokens, which decode only as a whole."""
        end = len(self._ids)
        while end > self._boundary and self._is_open_ended(self._ids[end - 1]):
            end -= 1
        return end

    def _is_open_ended(self, token_id: int) -> bool:
        if token_id in self._special:  # gives no text and does not end a run of bytes
            return True
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None

    def _read(self, end: int) -> str:
        """The characters that ids[:end] add for certain."""
        text = decode(self._tokenizer, self._ids[self._anchor : end])
        is_whole = not text.endswith(_REPLACEMENT)
        new = text.removesuffix(_REPLACEMENT)[self._num_read :]
        self._num_read += len(new)
        if is_whole and end > self._boundary:
            self._move_anchor(end)
        return new

    def _move_anchor(self, end: int) -> None:
        """Forgets the oldest context, so that a push costs the same in a long answer."""
        context = decode(self._tokenizer, self._ids[self._boundary : end])
        if context:
            self._anchor = self._boundary
            self._num_read = len(context)
            self._boundary = end

    def _num_surely_no_stop(self) -> int:
        """Index in the held text from which on a stop string may be beginning."""
        longest = max(map(len, self._stop), default=1)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(s.startswith(self._held[start:]) for s in self._stop):
                return start
        return len(self._held)

    def _take(self, end: int) -> str:
        """Returns the held text up to `end`, or up to a stop string that begins before."""
        start, found = _first_stop(self._held, self._stop)
        if found and start <= end:
            end = start + len(found) * self._keeps_stop
            self.stop_text = found
            self._stopped_at = self.num_tokens_of(self._num_given + end)
        given = self._held[:end]
        self._held = self._held[end:]
        self._num_given += end
        return given
