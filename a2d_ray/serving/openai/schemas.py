"""JSON schemas as people write them, for a reader that refuses what it does not know."""

from typing import Any

# Formats of JSON Schema 2020-12. Any other one is a note to people, which allows every text.
_FORMATS = {
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "idn-email",
    "hostname",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uri-reference",
    "iri",
    "iri-reference",
    "uuid",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
}
_HOLD_DATA = ("const", "enum", "default", "example", "examples")
_HOLD_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def without_notes(schema: Any) -> Any:
    """A schema that allows the same, without the formats that JSON Schema does not define, and
    without empty ids, which llguidance takes for that of the whole document."""
    if isinstance(schema, list):
        return [without_notes(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _kept(key, value) for key, value in schema.items() if not _is_note(key, value)}


def _is_note(key: str, value: Any) -> bool:
    if key == "$id":
        return value in ("", "#")
    return key == "format" and isinstance(value, str) and value not in _FORMATS


def _kept(key: str, value: Any) -> Any:
    if key in _HOLD_DATA:
        return value
    if key in _HOLD_NAMES and isinstance(value, dict):
        return {name: without_notes(inner) for name, inner in value.items()}
    return without_notes(value)
