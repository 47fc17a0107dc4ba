"""Measure a suite: python jobs/benchmark.py SUITE [--quick] [key=value ...]"""

import sys
from pathlib import Path

from a2d_ray.cli import ConfigError, load_config
from a2d_ray.config import BenchmarkConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(BenchmarkConfig, "benchmark", [_argument(arg) for arg in sys.argv[1:]])
    repository = Path(__file__).resolve().parents[2]  # benchmarks/ is not in the package
    if not (repository / "benchmarks").is_dir():
        raise ConfigError(
            "benchmarks come with the repository, not with the package: clone it, make install"
        )
    sys.path.insert(0, str(repository))
    from benchmarks.harness import SUITES, run_suite

    if config.suite not in SUITES:
        raise ConfigError(f"suite={config.suite} is not there yet: choose from {sorted(SUITES)}")
    for line in run_suite(config):
        say(line)


def _argument(arg: str) -> str:
    """`SUITE` and `--quick` are short for `suite=SUITE` and `quick=true`."""
    if arg == "--quick":
        return "quick=true"
    is_suite = "=" not in arg and not arg.startswith("-") and not arg.endswith((".yaml", ".yml"))
    return f"suite={arg}" if is_suite else arg
