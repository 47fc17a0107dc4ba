"""Measure a checkpoint: python jobs/evaluate.py [SUITE.yaml] [key=value ...] (help: --help)

python jobs/evaluate.py frontier [CONFIG.yaml] [key=value ...]   speed against quality
python jobs/evaluate.py compare A.json B.json                    two reports, paired
"""

import sys
from pathlib import Path

from a2d_ray.cli import ConfigError, load_config
from a2d_ray.config import EvaluateConfig, FrontierConfig
from a2d_ray.config.commands import command_of
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    command = (sys.argv[1:2] or [""])[0]
    args = sys.argv[2:]
    if command == "compare":
        if len(args) != 2:
            raise ConfigError(f"the form is {command_of('evaluate')} compare A.json B.json")
        from a2d_ray.evaluation.report import report

        first, second = (report.read_report(path) for path in args)
        found = report.compare_reports(first, second)
        conditions = report.differing_conditions(first, second, found)
        say(report.comparison_markdown(args, found, conditions))
    elif command == "frontier":
        config = load_config(FrontierConfig, "frontier", args)
        from a2d_ray.evaluation.harness.frontier import run_frontier, write_frontier

        curves = run_frontier(config)
        say(write_frontier(curves, config.tasks[0].task, Path(config.output) / config.name))
    else:
        suite = load_config(EvaluateConfig, "evaluate", sys.argv[1:])
        from a2d_ray.evaluation.harness.suite import run_suite
        from a2d_ray.evaluation.report.report import log_to_wandb, markdown, write_report

        measured = run_suite(suite)
        path = write_report(measured, Path(suite.output) / suite.name)
        log_to_wandb(measured, suite, path.parent)
        say(f"{markdown(measured)}\n\n{path}")
