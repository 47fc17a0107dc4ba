"""What runs are doing: python jobs/status.py [storage_path=runs] [name=RUN] [--json]"""

import json
import sys
from dataclasses import asdict

from a2d_ray.cli import load_config, run
from a2d_ray.config import StatusConfig


def main() -> None:
    args = ["output=json" if arg == "--json" else arg for arg in sys.argv[1:]]
    config = load_config(StatusConfig, "status", args)
    from a2d_ray.runs.status import format_status, list_runs, run_status

    names = list_runs(config.storage_path) if config.name is None else [config.name]
    runs = [run_status(config.storage_path, name) for name in names]
    if config.output == "json":
        print(json.dumps([asdict(status) for status in runs], indent=2))
    else:
        print(format_status(runs) if runs else f"no runs in {config.storage_path}")


if __name__ == "__main__":
    run(main)
