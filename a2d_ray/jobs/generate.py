"""Answers a file of prompts on a Ray cluster: python jobs/generate.py input=... output=..."""

from a2d_ray.cli import load_config
from a2d_ray.config import GenerateConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(GenerateConfig, "generate")
    from a2d_ray.offline.parts import plan_batch
    from a2d_ray.runs.storage import absolute_path

    plan = plan_batch(config)  # bad input fails before Ray starts
    num_done = plan.num_parts - len(plan.missing)
    say(f"{plan.num_rows:,} prompts in {plan.num_parts:,} parts, {num_done:,} done before")
    if plan.missing:
        from a2d_ray.offline.batch import report_progress

        say(report_progress(config, plan))
    output = absolute_path(config.output)
    say(f"answers: {output}/answers; rows to train on: {output}/conversations")
