"""The measured recipe: SmolLM2-135M-Instruct learns two tasks and drafts of its own answers.

Tasks that it can learn in minutes, rows of its own answers to general questions, so that it keeps
what it knew, and a joint training: the AR mode learns the tasks, and masks learn to draft them.
"""

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
TASKS = ("sorting", "records")
QUESTIONS = (
    "Sort these numbers in ascending order: 71, 18, 35",
    "Write as JSON: Paul is 42 years old and lives in Vienna.",
    "What is the capital of France?",
)
MEASURED_RULES = ("ar", "speculate", "threshold")
MODEL_ID = "SmolLM2-135M-BD3LM"
STEPS_VARIABLE = "QUICKSTART_STEPS"
SMOKE_STEPS = 20  # with fewer steps it is a smoke test
BLOCK_SIZE = 8
LONGEST_DOCUMENT = 64
LONGEST_OWN_ANSWER = 40  # tokens
ROWS_PER_STEP = 6  # of two or three documents each: a pack is often of one kind, a step is not
TRAINABLE_LAYERS = 16  # of 30: on two cores, twice as many steps as with all
STREAMS = 2  # the clean copy and the noisy one
_TRAIN_ROWS = {"sorting": 600, "records": 250}
_TEST_ROWS = 60
SMOKE_STRIDE = 8  # of the general questions
_SMOKE_ROWS = {"train": 60, "test": 20}


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


def data_spec(root: Path, is_small: bool) -> str:
    """The mixture: rows of both tasks, and all of the model's own answers."""
    test = _SMOKE_ROWS["test"] if is_small else _TEST_ROWS
    parts = []
    for name, size in _TRAIN_ROWS.items():
        train = _SMOKE_ROWS["train"] if is_small else size
        parts.append(f"embedded/{name}[train:{train},test:{test}]")
    return "+".join([*parts, f"{own_answers_path(root)}[test:4]"])


def own_answers_path(root: Path) -> Path:
    """Where the model's own answers to general questions lie, as rows that training reads."""
    return root / "own-answers.jsonl"


def train_config(
    root: Path, steps: int, num_workers: int, *, seed: int = 0, use_gpu: bool = False
) -> TrainConfig:
    """The training run: about 800 tokens over both streams per step."""
    small = is_smoke(steps)
    return TrainConfig.model_validate(
        {
            "run": {"name": "train", "storage_path": str(root), "resume": True, "seed": seed},
            "model": {"path": str(root / "model"), "trainable_layers": TRAINABLE_LAYERS},
            "data": {
                "spec": data_spec(root, small),
                "packed_path": str(root / "packed"),
                "max_length": LONGEST_DOCUMENT,
                "tokens_per_row": STREAMS * LONGEST_DOCUMENT,
            },
            "objective": {
                "name": "bd3lm",
                "block_size": BLOCK_SIZE,
                "clean_attention": "causal",
                "first_block": "random",
                "ar_loss_weight": 1.0,
                "noise": "full",
                "full_share": 0.75,
                "corruption_warmup": 0.04,
            },
            "batch": {"rows": num_workers * -(-ROWS_PER_STEP // num_workers)},
            "optim": {"lr": 5e-4, "betas": (0.9, 0.98), "clip_norm": 1.0, "warmup": 0.04},
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
    """How a checkpoint of the quickstart is loaded."""
    return LoadSection(path=str(path))


def serve_config(checkpoint: Path, port: int) -> ServeConfig:
    """The trained checkpoint behind the OpenAI-compatible endpoint."""
    model = {
        "id": MODEL_ID,
        "load": {"path": str(checkpoint)},
        "sampling": SamplingSection(max_new_tokens=64).model_dump(),
    }
    return ServeConfig.model_validate({"models": [model], "port": port})


def sampling_params(rule: str = "speculate") -> SamplingParams:
    """How held-out tasks are decoded; no right answer is longer than 24 tokens."""
    return SamplingParams(max_new_tokens=24, rule=rule)


def own_answer_params() -> SamplingParams:
    """How the model answers general questions."""
    return SamplingParams(max_new_tokens=LONGEST_OWN_ANSWER, rule="ar")


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """A row's messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
