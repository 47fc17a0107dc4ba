"""Hashes that are the same on every machine and in every process."""

import hashlib


def stable_id(*parts: str) -> int:
    """A hash of the parts, 0 <= id < 2**63."""
    return _hash64("\0".join(parts)) >> 1


def uniform(text: str) -> float:
    """A hash of the text on [0, 1)."""
    return _hash64(text) / 2**64


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
