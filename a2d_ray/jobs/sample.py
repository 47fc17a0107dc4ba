"""Samples from a checkpoint: python jobs/sample.py model.path=... prompts='["..."]'"""

from a2d_ray.cli import load_config
from a2d_ray.config import SampleConfig
from a2d_ray.terminal.streams import console


def main() -> None:
    """See the module."""
    config = load_config(SampleConfig, "sample")

    from a2d_ray import load
    from a2d_ray.text.chat import show_samples

    lm = load(**config.model.model_dump(exclude_none=True))
    show_samples(lm, config, console(highlight=False))
