"""What a run will take, on paper: python jobs/plan.py [key=value ...] [--json]"""

import json
import sys

from a2d_ray.cli import load_config
from a2d_ray.config import PlanConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    args = ["output=json" if arg == "--json" else arg for arg in sys.argv[1:]]
    config = load_config(PlanConfig, "plan", args)
    from a2d_ray.planning.estimate import plan_run
    from a2d_ray.planning.table import format_plan

    plan = plan_run(config)
    say(json.dumps(plan.to_dict(), indent=2) if config.output == "json" else format_plan(plan))
