"""The process of one evaluation: ``python -m a2d_ray.evaluation.service.worker DIRECTORY``.

A process of its own, since an evaluation must neither hold up the server's event loop nor outlive
its cancellation. It ends with the server that started it.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from a2d_ray.config import EvaluateConfig
from a2d_ray.runs.storage import write_whole

TRY_AGAIN = 75  # exit code: the endpoint failed; answers so far are kept
_MIN_INTERVAL_S = 0.2  # between writes of the progress


class ProgressFile:
    """Writes how far an evaluation is.

    Args:
        path: the file.
        tasks: names, in the order in which they run.
    """

    def __init__(self, path: Path, tasks: list[str]) -> None:
        self._path = path
        self._tasks = tasks
        self._written = 0.0

    def __call__(self, task: str, num_done: int, num_asked: int) -> None:
        """Takes what `run_suite` observes."""
        if num_done not in (0, num_asked) and time.monotonic() < self._written + _MIN_INTERVAL_S:
            return
        values = {
            "task": task,
            "num_tasks_done": self._tasks.index(task),
            "num_answers": num_done,
            "num_requests": num_asked,
        }
        write_whole(self._path, json.dumps(values))
        self._written = time.monotonic()


def evaluate(directory: Path) -> None:
    """Runs ``config.json`` of a directory and writes the report beside it."""
    from a2d_ray.evaluation.harness.suite import run_suite
    from a2d_ray.evaluation.report.report import log_to_wandb, write_report

    config = EvaluateConfig.model_validate_json((directory / "config.json").read_text())
    progress = ProgressFile(directory / "progress.json", [task.task for task in config.tasks])
    report = run_suite(config, observe=progress)
    write_report(report, directory)
    log_to_wandb(report, config, directory)


def main(directory: Path) -> int:
    """The exit code; why it is not 0 stands in ``error.txt``."""
    import openai

    try:
        evaluate(directory)
    except ValueError as error:
        write_whole(directory / "error.txt", str(error))
        return 1
    except openai.APIStatusError as error:
        write_whole(directory / "error.txt", f"the endpoint answered {error}")
        return TRY_AGAIN if error.status_code >= 500 or error.status_code == 429 else 1
    except openai.APIConnectionError as error:
        write_whole(directory / "error.txt", f"the endpoint does not answer: {error}")
        return TRY_AGAIN
    return 0


def _end_with_parent() -> None:
    """Ends the process when the other end of its input closes: the server is gone."""
    while os.read(0, 1):  # not sys.stdin, whose lock a thread may not hold when Python ends
        pass
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TRY_AGAIN))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    raise SystemExit(main(Path(sys.argv[1])))
