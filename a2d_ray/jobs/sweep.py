"""Search hyper-parameters with Ray Tune: python jobs/sweep.py sweep.name=... [key=value ...]"""

from a2d_ray.cli import load_config
from a2d_ray.config import SweepConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(SweepConfig, "sweep")
    from a2d_ray.sweeps.space import read_space

    read_space(config)
    from a2d_ray.sweeps.results import format_results
    from a2d_ray.sweeps.sweep import run_sweep

    say(format_results(run_sweep(config), config.sweep.metric))
