"""Convert, train, measure, serve and ask a small diffusion language model on this machine."""

from a2d_ray.cli import load_config
from a2d_ray.config import QuickstartConfig


def main() -> None:
    """See the module."""
    config = load_config(QuickstartConfig, "quickstart")

    # Late, so that a wrong value fails at once; it sets the environment before Ray is imported.
    from a2d_ray.quickstart.flow import run_quickstart

    run_quickstart(config)
