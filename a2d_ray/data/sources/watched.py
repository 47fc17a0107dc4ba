"""Rows that know which of their text was looked at, so that none is dropped in silence."""

from collections.abc import Iterator, Mapping
from typing import Any

_OPTIONS = ("chat_template_kwargs",)  # TRL's: what the template of a row reads


class Watched(Mapping[str, Any]):
    """A row, or an object within one.

    Args:
        values: as they are stored.
        label: what its keys are called, such as ``column`` or ``key messages[].``.
    """

    def __init__(self, values: Mapping[str, Any], label: str = "column ") -> None:
        self._values = values
        self._label = label
        self._seen: set[str] = set()
        self._inner: list[Watched] = []

    def __getitem__(self, key: str) -> Any:
        self._seen.add(key)
        return self._values[key]

    def peek(self, key: str) -> Any:
        """The value of a key, None without one; the key does not count as looked at."""
        return self._values.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def inner(self, values: Mapping[str, Any], label: str) -> "Watched":
        """An object within it, watched too."""
        self._inner.append(Watched(values, label))
        return self._inner[-1]

    def unread(self) -> set[str]:
        """The columns and keys that hold text, or change the prompt, and were not looked at."""
        found = {
            f"{self._label}{key}"
            for key, value in self._values.items()
            if key not in self._seen and (_holds_text(value) or (key in _OPTIONS and value))
        }
        return found.union(*(row.unread() for row in self._inner))


def _holds_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(_holds_text(item) for item in value.values())
    return isinstance(value, list | tuple) and any(map(_holds_text, value))
