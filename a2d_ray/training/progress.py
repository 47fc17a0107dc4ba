"""The driver's progress bar: follows the metrics that rank 0 writes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from a2d_ray.runs.storage import METRICS_FILE, RunDirectory
from a2d_ray.terminal.progress import Progress

PROGRESS_POLL_S = 0.5


@contextmanager
def progress_bar(directory: RunDirectory, num_steps: int, name: str) -> Iterator[None]:
    """Shows steps, loss, held-out NELBO, tokens/s and the time left while its body runs.

    Args:
        directory: of the run; one in an object store shows no more than that time passes.
        num_steps: steps of the whole run.
        name: what the bar is called.
    """
    done = threading.Event()
    path = (directory.local_path or Path("/nowhere")) / METRICS_FILE
    with Progress(name, num_steps, "step") as progress:
        follower = threading.Thread(target=_follow, args=(path, progress, done), daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join(timeout=5)


def _follow(path: Path, progress: Progress, done: threading.Event) -> None:
    shown: dict[str, str] = {}
    while True:
        is_last = done.is_set()
        for line in _last_lines(path):
            if "eval/nelbo" in line:
                shown["nelbo"] = f"{line['eval/nelbo']:.3f}"
            if "eval/accepted_length" in line:
                shown["accepted"] = f"{line['eval/accepted_length']:.2f}"
            for key in ("rl/reward", "eval/reward"):
                if key in line:
                    shown[key] = f"{line[key]:.3f}"
            if "loss" in line:
                shown["loss"] = f"{line['loss']:.3f}"
                shown["tokens/s"] = f"{line['tokens_per_s']:.0f}"
            step = int(line["step"])
            if progress.num_done == 0 and step > 1:  # a resumed run
                progress.begin_at(step)
            progress.move_to(max(step, progress.num_done), shown)
        if is_last:
            return
        done.wait(PROGRESS_POLL_S)


def _last_lines(path: Path, num_bytes: int = 4096) -> list[dict[str, float]]:
    """The whole lines at the end of a growing JSONL file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - num_bytes))
        text = file.read().decode(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
