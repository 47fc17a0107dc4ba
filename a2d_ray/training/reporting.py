"""What rank 0 writes while it trains: metrics.jsonl, loss.png, W&B."""

import io
import json
from typing import Any

from a2d_ray.config import TrainConfig
from a2d_ray.training.gauges import RunGauges
from a2d_ray.training.storage import RunDirectory

METRICS_FILE, PLOT_FILE = "metrics.jsonl", "loss.png"


class MetricsLog:
    """Lines of metrics in the run's directory; a resumed run continues behind its checkpoint.

    Args:
        directory: of the run.
        start_step: step that the run starts from; later lines of an earlier attempt are dropped.
    """

    def __init__(self, directory: RunDirectory, start_step: int) -> None:
        self.directory = directory
        text = (directory.read(METRICS_FILE) or b"").decode()
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        lines = [json.loads(line) for line in whole.splitlines()]
        self.lines = [line for line in lines if line["step"] <= start_step]
        self.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line: at once on a disk, at the next `flush` in an object store."""
        self.lines.append(line)
        if self.directory.local_path is not None:
            self.directory.append(METRICS_FILE, _encode(line))

    def flush(self) -> None:
        """Writes the whole file."""
        self.directory.write(METRICS_FILE, b"".join(map(_encode, self.lines)))

    def plot(self) -> None:
        """Draws loss.png from the lines."""
        self.directory.write(PLOT_FILE, draw_curves(self.lines))


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


class RunReporter:
    """What rank 0 reports of its run: JSONL lines, curves, gauges, and W&B where configured."""

    def __init__(self, config: TrainConfig, log: MetricsLog, gauges: RunGauges) -> None:
        self._log, self._gauges, self._run = log, gauges, None
        if config.wandb.mode != "disabled":
            import wandb

            self._run = wandb.init(
                project=config.wandb.project,
                entity=config.wandb.entity,
                mode=config.wandb.mode,
                id=config.run.name,
                name=config.run.name,
                dir=log.directory.local_path,
                resume="allow",
                config=config.model_dump(mode="json"),
            )

    def step(self, line: dict[str, Any]) -> None:
        """Reports one optimizer step."""
        self._record(line)

    def evaluation(self, line: dict[str, Any]) -> None:
        """Reports held-out figures, and draws the curves."""
        self._record(line)
        self._log.flush()
        self._log.plot()

    def close(self) -> None:
        """Finishes the files."""
        self._log.flush()
        self._log.plot()
        if self._run is not None:
            self._run.finish()

    def _record(self, line: dict[str, Any]) -> None:
        self._log.write(line)
        self._gauges.set(line)
        if self._run is not None:
            self._run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])


def draw_curves(lines: list[dict[str, Any]]) -> bytes:
    """PNG of the training loss and the held-out NELBO over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval/nelbo" in line]
    axes.plot(
        [line["step"] for line in steps],
        [line["loss"] for line in steps],
        linewidth=0.8,
        alpha=0.6,
        label="training loss per target token",
    )
    axes.plot(
        [line["step"] for line in evaluations],
        [line["eval/nelbo"] for line in evaluations],
        marker="o",
        label="held-out NELBO per answer token",
    )
    axes.set(xlabel="optimizer step", ylabel="nats")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
