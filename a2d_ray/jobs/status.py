"""What runs are doing: python jobs/status.py [storage_path=runs] [name=RUN] [--json]"""

import json
import sys
from dataclasses import asdict

from a2d_ray.cli import load_config
from a2d_ray.config import StatusConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    args = ["output=json" if arg == "--json" else arg for arg in sys.argv[1:]]
    config = load_config(StatusConfig, "status", args)
    from a2d_ray.runs.status import format_status, list_runs, run_status

    names = list_runs(config.storage_path) if config.name is None else [config.name]
    runs = [run_status(config.storage_path, name) for name in names]
    if config.output == "json":
        say(json.dumps([asdict(status) for status in runs], indent=2))
    else:
        say(format_status(runs) if runs else f"no runs in {config.storage_path}")
