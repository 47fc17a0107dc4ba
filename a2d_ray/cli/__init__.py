"""The one command-line form: ``a2d JOB [CONFIG.yaml] [key.sub=value ...]``.

A configuration is four layers, each over the one before: the defaults of `a2d_ray.config`, the
job's own file in ``jobs/configs/``, the user's file, the overrides. No torch and no Ray in here.
"""

from a2d_ray.cli.command import load_config, parse_config, to_yaml
from a2d_ray.cli.job import run
from a2d_ray.config.errors import ConfigError
from a2d_ray.config.layers import validate

__all__ = [
    "ConfigError",
    "load_config",
    "parse_config",
    "run",
    "to_yaml",
    "validate",
]
