"""Hashes that are the same on every machine and in every process."""

import ast
import hashlib
from pathlib import Path

import numpy as np

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stable_id(*parts: str) -> int:
    """A hash of the parts, 0 <= id < 2**63."""
    return _hash64("\0".join(parts)) >> 1


def uniform_hash(text: str) -> float:
    """A hash of the text on [0, 1)."""
    return _hash64(text) / 2**64


def code_hash(*paths: str | Path) -> str:
    """A hash of what Python files do: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(Path(path).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass()
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


def scramble(values: np.ndarray, seed: int) -> np.ndarray:
    """A bijection of 64-bit integers that looks random: different values stay different.

    Args:
        values: integers of 64 bits, any shape.
        seed: which bijection.

    Returns:
        uint64, the shape of `values`.

    Source: SplitMix64 (Steele, Lea, Flood, 2014).
    """
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + _GOLDEN * np.uint64(seed % 2**64 + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
