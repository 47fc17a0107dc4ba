"""What rank 0 writes while it trains: metrics.jsonl, samples.jsonl, loss.png, W&B."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from a2d_ray.config import TrainConfig
from a2d_ray.runs.storage import METRICS_FILE, RunDirectory
from a2d_ray.training.curves import draw_curves
from a2d_ray.training.gauges import RunGauges
from a2d_ray.training.samples import HeldOutSample

SAMPLES_FILE = "samples.jsonl"
PLOT_FILE = "loss.png"
_log = logging.getLogger(__name__)


class MetricsLog:
    """Lines of metrics in the run's directory; a resumed run continues behind its checkpoint.

    Args:
        directory: where the run writes, `storage_path/name`.
        start_step: step that the run starts from; later lines of an earlier attempt are dropped.
        file_name: of the lines.
    """

    def __init__(
        self, directory: RunDirectory, start_step: int, file_name: str = METRICS_FILE
    ) -> None:
        self.directory = directory
        self._file_name = file_name
        text = (directory.read(file_name) or b"").decode()
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        lines = [json.loads(line) for line in whole.splitlines()]
        self.lines = [line for line in lines if line["step"] <= start_step]
        self.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line: at once on a disk, at the next `flush` in an object store."""
        self.lines.append(line)
        if self.directory.local_path is not None:
            self.directory.append(self._file_name, _encode(line))

    def flush(self) -> None:
        """Writes the whole file."""
        self.directory.write(self._file_name, b"".join(map(_encode, self.lines)))

    def plot(self) -> None:
        """Draws loss.png from the lines."""
        title = self.directory.path.rpartition("/")[2]
        self.directory.write(PLOT_FILE, draw_curves(self.lines, title))


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


class RunReporter:
    """What rank 0 reports of its run: JSONL lines, curves, gauges, and W&B where configured."""

    def __init__(self, config: TrainConfig, metrics: MetricsLog, gauges: RunGauges) -> None:
        self._log = metrics
        self._gauges = gauges
        self._run = None
        start = max((line["step"] for line in metrics.lines), default=-1)
        self._samples = MetricsLog(metrics.directory, start, SAMPLES_FILE)
        if config.wandb.mode != "disabled":
            import wandb

            self._run = wandb.init(
                project=config.wandb.project,
                entity=config.wandb.entity,
                mode=config.wandb.mode,
                id=config.run.name,
                name=config.run.name,
                dir=metrics.directory.local_path,
                resume="allow",
                config=config.model_dump(mode="json"),
            )

    def step(self, line: dict[str, Any]) -> None:
        """Reports one optimizer step."""
        self._record(line)

    def evaluation(self, line: dict[str, Any], samples: Sequence[HeldOutSample] = ()) -> None:
        """Reports held-out figures and answers, and draws the curves."""
        self._record(line)
        for sample in samples:
            self._samples.write({"step": line["step"], **asdict(sample)})
        if samples and self._run is not None:
            import wandb

            columns: list[str | int] = [*asdict(samples[0])]
            table = wandb.Table(columns, [[*asdict(sample).values()] for sample in samples])
            self._run.log({"eval/samples": table}, step=line["step"])
        self._finish_files()

    def warn(self, text: str) -> None:
        """Says what went wrong without ending the run."""
        _log.warning(text)

    def close(self) -> None:
        """Finishes the files."""
        self._finish_files()
        if self._run is not None:
            self._run.finish()

    def _finish_files(self) -> None:
        self._log.flush()
        self._samples.flush()
        self._log.plot()

    def _record(self, line: dict[str, Any]) -> None:
        self._log.write(line)
        self._gauges.set(line)
        if self._run is not None:
            self._run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])
