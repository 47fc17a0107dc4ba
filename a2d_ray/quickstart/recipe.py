"""The measured recipe: SmolLM2-135M-Instruct to BD3LM, on tasks that it learns in minutes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from a2d_ray.config import LoadSection, QuickstartConfig, SamplingSection, ServeConfig, TrainConfig
from a2d_ray.generation.decoding.params import SamplingParams

SOURCE = "package:smollm2"
# SmolLM2's own template without its default system message, which would be half of each document
# and says who trained it. It stays with the checkpoint, so serving and chat use it too.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TASKS = ("sorting", "sums", "spelling")
QUESTIONS = (
    "Sort these numbers in ascending order: 71, 8, 35",
    "What is 31 + 46?",
    "Spell 'lamp' backwards.",
)
MODEL_ID = "SmolLM2-135M-BD3LM"
STEPS_VARIABLE = "QUICKSTART_STEPS"
SMOKE_STEPS = 20  # with fewer steps it is a smoke test
BLOCK_SIZE = 4
LONGEST_DOCUMENT = 48
ROWS_PER_STEP = 6  # of two or three documents each: a pack is often of one kind, a step is not
TRAINABLE_LAYERS = 16  # of 30: on two cores, twice as many steps as with all
STREAMS = 3  # the clean copy and two noisy views
_MIXTURE = {"sums": 0.25, "sorting": 0.60, "spelling": 0.10, "chat": 0.05}
_TRAIN_ROWS = 12_000
_TEST_ROWS = 320
_SMOKE_TRAIN_ROWS = 400
_SMOKE_TEST_ROWS = 80


def resolve_config(
    config: QuickstartConfig, environ: Mapping[str, str] = os.environ
) -> QuickstartConfig:
    """The configuration with ``QUICKSTART_STEPS`` applied.

    A smoke test (under 20 steps) asks few tasks and has a root of its own, so that it never
    spoils the real run.

    Raises:
        ValueError: ``QUICKSTART_STEPS`` is not a positive number.
    """
    steps: Any = environ.get(STEPS_VARIABLE) or config.steps
    try:
        steps = None if steps is None else int(steps)
    except ValueError:
        steps = 0
    if steps is not None and steps < 1:
        given = environ.get(STEPS_VARIABLE)
        raise ValueError(f"{STEPS_VARIABLE}={given}: give a number of steps, such as 2")
    if not is_smoke(steps):
        return config.model_copy(update={"steps": steps})
    changes = {"root": config.root + "-smoke", "eval_tasks": min(config.eval_tasks, 4)}
    return config.model_copy(update={"steps": steps, **changes})


def work_offline() -> None:
    """Keeps the Hub's clients from the network: model and data come from packages."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")


def is_smoke(steps: int | None) -> bool:
    """Whether this many steps make a smoke test."""
    return steps is not None and steps < SMOKE_STEPS


def data_spec(is_small: bool) -> str:
    """The mixture, in rows: 25 % sums, 60 % sorting, 10 % spelling, 5 % chat."""
    train, test = (_SMOKE_TRAIN_ROWS, _SMOKE_TEST_ROWS) if is_small else (_TRAIN_ROWS, _TEST_ROWS)
    return "+".join(
        f"embedded/{name}[train:{round(train * share)},test:{round(test * share)}]"
        for name, share in _MIXTURE.items()
    )


def train_config(root: Path, steps: int, num_workers: int, *, use_gpu: bool = False) -> TrainConfig:
    """The training run: about 850 tokens over all streams per step."""
    small = is_smoke(steps)
    return TrainConfig.model_validate(
        {
            "run": {"name": "train", "storage_path": str(root), "resume": True},
            "model": {"path": str(root / "model"), "trainable_layers": TRAINABLE_LAYERS},
            "data": {
                "spec": data_spec(small),
                "packed_path": str(root / "packed"),
                "max_length": LONGEST_DOCUMENT,
                "tokens_per_row": STREAMS * LONGEST_DOCUMENT,
            },
            "objective": {
                "name": "bd3lm",
                "block_size": BLOCK_SIZE,
                "noise": "exact",
                "views": STREAMS - 1,
                "corruption_warmup": 0.04,
            },
            "batch": {"rows": num_workers * -(-ROWS_PER_STEP // num_workers)},
            "optim": {"lr": 1e-3, "betas": (0.9, 0.98), "clip_norm": 1.0, "warmup": 0.04},
            "schedule": {
                "max_steps": steps,
                "eval_steps": 0.5,
                "eval_samples": 0,  # a stage of its own measures answers
                "save_steps": 0.5,
                "eval_rows": 6 if small else 24,
                "keep_last": 1,
            },
            "scaling": {"num_workers": num_workers, "use_gpu": use_gpu},
        }
    )


def data_figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says about a packed set, from its manifest."""
    train = manifest["splits"]["train"]
    return {key: train[key] for key in ("documents", "rows", "utilisation")}


def load_section(path: Path) -> LoadSection:
    """How a checkpoint of the quickstart is loaded; the converted one has no objective yet."""
    return LoadSection(path=str(path), objective="bd3lm", block_size=BLOCK_SIZE)


def serve_config(checkpoint: Path, port: int) -> ServeConfig:
    """The trained checkpoint behind the OpenAI-compatible endpoint."""
    model = {
        "id": MODEL_ID,
        "load": {"path": str(checkpoint)},
        "sampling": SamplingSection(max_new_tokens=64).model_dump(),
    }
    return ServeConfig.model_validate({"models": [model], "port": port})


def sampling_params() -> SamplingParams:
    """How the held-out tasks are decoded; no right answer is longer than 16 tokens."""
    return SamplingParams(max_new_tokens=16, rule="threshold", threshold=0.9)
