"""Converts an AR checkpoint into an A2D checkpoint: python jobs/convert.py source=... output=..."""

from a2d_ray.cli import load_config, run
from a2d_ray.config import ConvertConfig


def main() -> None:
    config = load_config(ConvertConfig, "convert")

    from a2d_ray.models.conversion import convert, describe

    output = convert(**config.model_dump())
    print(describe(output))


if __name__ == "__main__":
    run(main)
