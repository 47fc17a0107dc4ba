"""Samples from a checkpoint: python jobs/sample.py model.path=... prompts='["..."]'"""

from a2d_ray.cli import load_config, run
from a2d_ray.config import SampleConfig


def main() -> None:
    config = load_config(SampleConfig, "sample")

    from rich.console import Console

    from a2d_ray import load
    from a2d_ray.text.chat import show_samples

    lm = load(**config.model.model_dump(exclude_none=True))
    show_samples(lm, config, Console(highlight=False))


if __name__ == "__main__":
    run(main)
