"""What rank 0 writes while it trains: metrics.jsonl, loss.png, W&B."""

import io
import json
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from a2d_ray.config import TrainConfig

METRICS_FILE, PLOT_FILE = "metrics.jsonl", "loss.png"


class MetricsLog:
    """Lines of metrics in the run's storage; a resumed run continues behind its checkpoint.

    Args:
        filesystem, directory: where the run lies.
        start_step: step that the run starts from; later lines of an earlier attempt are dropped.
    """

    def __init__(self, filesystem: pafs.FileSystem, directory: str, start_step: int) -> None:
        self._filesystem = filesystem
        self._directory = PurePosixPath(directory)
        self._path = str(self._directory / METRICS_FILE)
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self.lines = [line for line in self._read() if line["step"] <= start_step]
        self.flush()

    @property
    def local_directory(self) -> str | None:
        """The run's directory if it is on a local or mounted disk, else None."""
        return str(self._directory) if self._is_local else None

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line: at once on a local disk, at the next `flush` elsewhere."""
        self.lines.append(line)
        if self._is_local:
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Writes the whole file."""
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        self._write_file(METRICS_FILE, text.encode())

    def plot(self) -> None:
        """Draws loss.png from the lines."""
        self._write_file(PLOT_FILE, draw_curves(self.lines))

    def _write_file(self, name: str, content: bytes) -> None:
        self._filesystem.create_dir(str(self._directory), recursive=True)
        with self._filesystem.open_output_stream(str(self._directory / name)) as file:
            file.write(content)

    def _read(self) -> list[dict[str, Any]]:
        if self._filesystem.get_file_info(self._path).type == pafs.FileType.NotFound:
            return []
        with self._filesystem.open_input_stream(self._path) as file:
            text = file.read().decode()
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        return [json.loads(line) for line in whole.splitlines()]


class RunReporter:
    """What rank 0 reports of its run: JSONL lines, curves, and W&B where it is configured."""

    def __init__(self, config: TrainConfig, log: MetricsLog) -> None:
        self._log, self._run = log, None
        if config.wandb.mode != "disabled":
            import wandb

            self._run = wandb.init(
                project=config.wandb.project,
                entity=config.wandb.entity,
                mode=config.wandb.mode,
                id=config.run.name,
                name=config.run.name,
                dir=log.local_directory,
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
