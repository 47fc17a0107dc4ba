"""Training rows that share word n-grams with evaluation sets are left out. No Ray here.

Texts are compared as lower-case words without punctuation. A row is contaminated if it holds any
n consecutive words of an evaluation row; an evaluation row of fewer words counts as a whole.
Source: GPT-3 (arXiv 2005.14165), appendix C, with n = 13 there.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from a2d_ray.config import OptionError
from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.mixture import parse_spec
from a2d_ray.data.sources.shards import Shape, read_shard, resolve_source

CONTAMINATED = "overlaps data.decontaminate"
SHORTEST_WORDS = 4  # an evaluation row of fewer words says too little to look for it
_WORDS = re.compile(r"\w+")
_PRIME = 0x100000001B3


def evaluation_ngrams(specs: Sequence[str], size: int, shape: Shape) -> dict[int, np.ndarray]:
    """What to look for: hashes of the word n-grams of evaluation rows.

    Args:
        specs: ``data.decontaminate``: specs of evaluation sets; their test split is read, or,
            where there is none, all.
        size: n, words of an n-gram.
        shape: how rows become examples.

    Returns:
        Words of an n-gram -> its sorted hashes, uint64: `size`, and shorter ones for rows that
        have fewer words.

    Raises:
        ValueError: an evaluation set that cannot be read, or without rows.
    """
    found: dict[int, list[np.ndarray]] = {}
    for text in specs:
        for spec in parse_spec(text):
            source = resolve_source(spec, is_evaluation=True)
            shards = source.test or source.train
            rows = (row.example for shard in shards for row in read_shard(shard, spec, shape))
            for words in _all_words(example for example in rows if example is not None):
                if len(words) >= SHORTEST_WORDS:
                    length = min(size, len(words))
                    found.setdefault(length, []).append(_ngram_hashes(words, length))
    if specs and not found:
        raise OptionError(
            "data.decontaminate", list(specs), "hold no rows of text", "leave them out"
        )
    return {length: np.unique(np.concatenate(parts)) for length, parts in sorted(found.items())}


def overlaps(example: Example, ngrams: dict[int, np.ndarray]) -> bool:
    """Whether an example shares an n-gram with an evaluation set."""
    if not ngrams:
        return False
    for words in _all_words([example]):
        for length, wanted in ngrams.items():
            if len(words) < length:
                continue
            hashes = _ngram_hashes(words, length)
            places = np.minimum(np.searchsorted(wanted, hashes), wanted.size - 1)
            if (wanted[places] == hashes).any():
                return True
    return False


def _all_words(examples: Iterable[Example]) -> Iterable[list[str]]:
    """Words of each text and message."""
    for example in examples:
        for text in (example.text, *(content for _, content in example.messages)):
            yield _WORDS.findall(text.lower())


def _ngram_hashes(words: Sequence[str], length: int) -> np.ndarray:
    """A hash of each run of `length` words: a polynomial of the words' hashes, modulo 2**64."""
    values = np.fromiter(map(_word_hash, words), np.uint64, count=len(words))
    windows = np.lib.stride_tricks.sliding_window_view(values, length)
    powers = np.array([pow(_PRIME, i, 2**64) for i in range(length)], dtype=np.uint64)
    with np.errstate(over="ignore"):
        return (windows * powers).sum(axis=1, dtype=np.uint64)


@lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
