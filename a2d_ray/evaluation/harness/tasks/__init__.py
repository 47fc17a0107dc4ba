"""Our own tasks of lm-evaluation-harness: YAML files, and the functions that they name."""

from pathlib import Path

TASKS_DIRECTORY = Path(__file__).parent
