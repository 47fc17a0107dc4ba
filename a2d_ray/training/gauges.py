"""A run's metrics for Prometheus, through Ray's metrics export: `ray_a2d_train_*`, tag `run`."""

from typing import Any

from ray.util.metrics import Gauge

GAUGES = {
    "step": "Optimizer steps done.",
    "num_steps": "Optimizer steps of the whole run.",
    "loss": "Training loss, nats per target token.",
    "grad_norm": "Global gradient norm before clipping.",
    "lr": "Learning rate.",
    "tokens_per_s": "Laid-out tokens per second over all workers.",
    "target_tokens_per_s": "Target tokens per second over all workers.",
    "utilisation": "Share of packed rows that is used.",
    "data_s": "Seconds of a step that rank 0 waits for data.",
    "step_s": "Seconds of a step.",
    "slowest_rank": "The rank that the others wait for.",
    "slowest_rank_s": "Seconds of a step's own work (rows, forward) of the slowest rank.",
    "median_rank_s": "The same of the median rank.",
    "nelbo": "Held-out NELBO, nats per answer token.",
    "accepted_length": "Tokens per forward that held-out drafts would give.",
    "reward": "Mean reward of roll-outs, or held out (reinforcement learning).",
    "draw_s": "Seconds in which the slowest roll-out worker drew a step's answers.",
    "weights_s": "Seconds in which weights were handed to the roll-out actors.",
}


class RunGauges:
    """Gauges of one run.

    Args:
        run: name of the run, the tag that dashboards select by.
        num_steps: optimizer steps of the whole run.
    """

    def __init__(self, run: str, num_steps: int) -> None:
        self._gauges = {
            name: Gauge(f"a2d_train_{name}", description=text, tag_keys=("run",))
            for name, text in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})
        self._gauges["num_steps"].set(num_steps)

    def set(self, line: dict[str, Any]) -> None:
        """Takes over the figures of a line of metrics; others are left out."""
        for key, value in line.items():
            gauge = self._gauges.get(key.rpartition("/")[2])  # eval/nelbo, time/slowest_rank
            if gauge is not None:
                gauge.set(value)
