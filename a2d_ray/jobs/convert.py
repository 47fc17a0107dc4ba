"""Converts an AR checkpoint into an A2D checkpoint: python jobs/convert.py source=... output=..."""

from a2d_ray.cli import load_config
from a2d_ray.config import ConvertConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(ConvertConfig, "convert")

    from a2d_ray.models.conversion import describe
    from a2d_ray.proving.conversion import convert, prove_source

    if config.prove == "only":
        say(prove_source(config.source, config.revision))
        return
    output = convert(**config.model_dump())
    say(describe(output))
