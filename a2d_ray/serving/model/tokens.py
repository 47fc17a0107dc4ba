"""Single tokens: their texts, what they are called, and where they begin in a text."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from a2d_ray.generation.decoding.denoise import TokenLogprob
from a2d_ray.generation.engine.engine import StepOutput
from a2d_ray.serving.openai.pieces import Candidate, CanvasToken, TokenInfo, TokenName
from a2d_ray.text.stream import decode

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}  # in byte-level BPE


class TokenReader:
    """Texts of single tokens, for canvases and log-probabilities.

    Args:
        tokenizer: a Hugging Face tokenizer; used by one thread.
    """

    def __init__(self, tokenizer: Any) -> None:
        cached = lru_cache(maxsize=65536)
        self.text = cached(lambda token_id: text_inside(tokenizer, [token_id]))
        self.name = cached(lambda token_id: _token_name(tokenizer, token_id))

    def info(self, entry: TokenLogprob) -> TokenInfo:
        """A token with its log-probability."""
        top = tuple((self.name(token_id), logprob) for token_id, logprob in entry.top)
        return TokenInfo(self.name(entry.token_id), entry.logprob, top)

    def candidates(self, entry: TokenLogprob) -> tuple[Candidate, ...]:
        """A token of a prompt, and the most likely ones in its place."""
        likely = tuple(
            Candidate(token_id, self.name(token_id).text, logprob, rank)
            for rank, (token_id, logprob) in enumerate(entry.top, 1)
        )
        if entry.token_id in (each.token_id for each in likely):
            return likely
        own = self.name(entry.token_id).text
        return (Candidate(entry.token_id, own, entry.logprob, None), *likely)

    def read(self, output: StepOutput) -> tuple[CanvasToken | None, ...]:
        """What the canvas holds behind the final text: drafts, or the block from its first mask."""
        first = 0
        if not output.is_draft:
            first = output.canvas.index(None) if None in output.canvas else len(output.canvas)
        pairs = zip(output.canvas[first:], output.canvas_confidence[first:], strict=True)
        return tuple(
            None
            if token_id is None or confidence is None
            else CanvasToken(self.text(token_id), confidence)
            for token_id, confidence in pairs
        )


class TextOffsets:
    """Where tokens begin in the text that they make, in characters.

    A character that several tokens spell begins with the first of them.

    Args:
        tokenizer: of the model.
        reader: of the tokenizer.
    """

    def __init__(self, tokenizer: Any, reader: TokenReader) -> None:
        self._tokenizer = tokenizer
        self._reader = reader
        self._num_read = 0  # characters before the parts of characters
        self._parts = list[int]()  # tokens that are no text alone

    def push(self, token_ids: Iterable[int], text: str = "") -> list[int]:
        """Takes the next tokens; the offsets that are now certain.

        Args:
            token_ids: the tokens.
            text: the whole text, if it is known and may spell out special tokens.
        """
        found = list[int]()
        for token_id in token_ids:
            own = self._reader.text(token_id)
            if not own and not decode(self._tokenizer, self._parts).endswith(_REPLACEMENT):
                found += self._join_parts()
                found.append(self._num_read)  # a special token between two characters
                name = self._reader.name(token_id).text
                self._num_read += len(name) * text.startswith(name, self._num_read)
            elif not own or _REPLACEMENT in own:
                self._parts.append(token_id)
            else:
                found += [*self._join_parts(), self._num_read]
                self._num_read += len(own)
        return found

    def finish(self, num_characters: int | None = None) -> list[int]:
        """The offsets of what was held back.

        Args:
            num_characters: of the whole text so far, if more text follows.
        """
        found = self._join_parts()
        if num_characters is not None:
            self._num_read = num_characters
        return found

    def _join_parts(self) -> list[int]:
        whole = decode(self._tokenizer, self._parts)
        texts = [decode(self._tokenizer, self._parts[:n]) for n in range(len(self._parts))]
        starts = [self._num_read + _num_shared(text, whole) for text in texts]
        self._num_read += len(whole)
        self._parts = []
        return starts


def _num_shared(text: str, other: str) -> int:
    """Characters that two texts begin with."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    )


def _token_name(tokenizer: Any, token_id: int) -> TokenName:
    """What a token is called, as vLLM and OpenAI spell it."""
    text = text_inside(tokenizer, [token_id])
    if not text:
        text = tokenizer.decode([token_id])  # special tokens are called as they are written
        return TokenName(token_id, text or _id_name(token_id), text.encode() or None)
    if _REPLACEMENT not in text:
        return TokenName(token_id, text, text.encode())
    code = _bytes_of(tokenizer.convert_ids_to_tokens(token_id))
    if code is None:
        return TokenName(token_id, _id_name(token_id), None)
    letters = (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in code)
    return TokenName(token_id, f"bytes:{''.join(letters)}", code)


def _id_name(token_id: int) -> str:
    return f"token_id:{token_id}"


def _bytes_of(token: str) -> bytes | None:
    """The bytes that a token of byte-level BPE, or of a fallback to bytes, stands for."""
    if found := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(found[1])
    if all(letter in _BYTE_OF for letter in token):
        return bytes(_BYTE_OF[letter] for letter in token)
    return None


def text_inside(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """What tokens add to a text. Some decoders drop the space that begins a text: of two copies
    the second one keeps its own.
    """
    once = decode(tokenizer, token_ids)
    twice = decode(tokenizer, [*token_ids, *token_ids])
    return f" {once}" if twice == f"{once} {once}" else once
