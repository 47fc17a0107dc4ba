"""Converts an AR checkpoint into an A2D checkpoint: python jobs/convert.py source=... output=..."""

from a2d_ray.cli import load_config
from a2d_ray.config import ConvertConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(ConvertConfig, "convert")

    from a2d_ray.models.conversion import convert, describe

    output = convert(**config.model_dump())
    say(describe(output))
