"""What the clients ask for. Each runs as `python CLIENT.py URL` and ends with 0 if all held."""

import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict

URL = sys.argv[1] if len(sys.argv) > 1 else ""
MODEL = "tiny"
QUESTION = "2+2?"
THOUGHT = "<think>\nR\n</think>\n\nhi"
"""A random model does not think: this text is asked of it as `guided_regex`."""


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    old: bool


class Owner(BaseModel):
    """Who has pets; a model within a model is a `$ref`."""

    model_config = ConfigDict(extra="forbid")

    pet: Pet
    other: Pet | None


def set_light(on: bool) -> str:
    """Switches the light."""
    return f"the light is {'on' if on else 'off'}"


LIGHT = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switches the light.",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}
