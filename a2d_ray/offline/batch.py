"""Offline generation on a Ray cluster: engines in the actors of Ray Data answer part after part.

Actors read their own prompts and write their own answers; through Ray go part numbers and counts
alone. So no task waits for a CPU that an actor holds, and a killed job loses what was running.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from a2d_ray.config import GenerateConfig
from a2d_ray.offline.answers import PartAnswerer, conversations
from a2d_ray.offline.parts import (
    BatchPlan,
    read_prompts,
    record_model,
    unwritable,
    write_answers,
)
from a2d_ray.runs.cluster import start_ray
from a2d_ray.runs.environment import worker_env
from a2d_ray.runs.resources import (
    Share,
    available_resources,
    check_room,
    gpu_share,
    reserved_device,
)
from a2d_ray.runs.storage import RunDirectory
from a2d_ray.runs.task_errors import task_errors
from a2d_ray.terminal.notices import mark_warnings
from a2d_ray.terminal.progress import Progress


def answer_parts(config: GenerateConfig, plan: BatchPlan) -> Iterator[dict[str, int]]:
    """Answers the missing parts; yields the counts of each as it is done.

    Args:
        config: the job.
        plan: of it.

    Yields:
        num_rows, num_errors, num_prompt_tokens, num_tokens, num_denoise_steps and
        num_conversations of a part.

    Raises:
        ValueError: there are too few CPUs or GPUs; a model that cannot be loaded; an output that
            cannot be written.
    """
    num_replicas = min(config.num_replicas, len(plan.missing))
    if not num_replicas:
        return
    _check_replicas(config, num_replicas)
    start_ray(num_replicas * config.cpus_per_replica + 1)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        with task_errors():
            for row in _answered(config, plan, num_replicas).iter_rows():
                yield {key: int(value) for key, value in row.items()}
    except OSError as error:
        raise unwritable(config, error) from error.__cause__


def _answered(config: GenerateConfig, plan: BatchPlan, num_replicas: int) -> Dataset:
    """Rows of counts, one for each missing part."""
    items = [{"part": part} for part in plan.missing]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        BatchReplica,
        fn_constructor_args=(config.model_dump(), plan.folder),
        batch_size=1,
        compute=ActorPoolStrategy(size=num_replicas),
        num_cpus=config.cpus_per_replica,
        num_gpus=gpu_share(config.gpus_per_replica, num_replicas, available_resources()),
        runtime_env={"env_vars": worker_env(config.cpus_per_replica)},
    )


def report_progress(config: GenerateConfig, plan: BatchPlan) -> str:
    """Answers the missing parts under a progress bar; returns a line on what it took."""
    started = time.perf_counter()
    total = Counter[str]()
    num_missing = len(plan.missing) * config.rows_per_part
    num_before = max(0, plan.num_rows - num_missing)
    with Progress("generate", plan.num_rows, "prompt", start=num_before) as progress:
        for counts in answer_parts(config, plan):
            total.update(counts)
            speed = f"{total['num_tokens'] / _since(started):.0f}"
            progress.move_to(num_before + total["num_rows"], {"tokens/s": speed})
    seconds = _since(started)
    return (
        f"{total['num_rows']:,} prompts, {total['num_errors']:,} of them with errors, "
        f"{total['num_prompt_tokens']:,} tokens in and {total['num_tokens']:,} out in "
        f"{seconds:.0f} s: {total['num_tokens'] / seconds:.1f} tokens/s, "
        f"{total['num_tokens'] / max(1, total['num_denoise_steps']):.2f} tokens per denoise step; "
        f"{total['num_conversations']:,} conversations to train on"
    )


def _since(started: float) -> float:
    return max(time.perf_counter() - started, 1e-9)


def _check_replicas(config: GenerateConfig, num_replicas: int) -> None:
    there = available_resources()
    check_room(
        there,
        "num_replicas",
        num_replicas,
        cpus=Share(config.cpus_per_replica, "cpus_per_replica"),
        gpus=Share(gpu_share(config.gpus_per_replica, num_replicas, there), "gpus_per_replica"),
    )


class BatchReplica:
    """An engine in an actor of Ray Data.

    Args:
        config: the `GenerateConfig` as plain values.
        folder: the output directory.
    """

    def __init__(self, config: dict[str, Any], folder: RunDirectory) -> None:
        import torch

        mark_warnings()
        self._config = GenerateConfig.model_validate(config)
        self._folder = folder
        torch.set_num_threads(self._config.cpus_per_replica)
        self._refusal: ValueError | OSError | None = None
        try:
            self._load()
        except (ValueError, OSError) as error:  # raised here, Ray would start actors for ever
            self._refusal = error

    def _load(self) -> None:
        from a2d_ray.text.language_model import load

        options = self._config.model.model_dump(exclude_none=True)
        lm = load(**options | {"device": reserved_device(self._config.model.device)})
        record_model(self._config.output, self._folder, lm.fingerprint())
        self._tokenizer = lm.tokenizer
        self._answerer = PartAnswerer(lm, self._config)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        if self._refusal is not None:
            raise self._refusal
        (part,) = batch["part"].tolist()
        answers = self._answerer.answer(read_prompts(self._folder, part))
        whole = conversations(answers, self._config, self._tokenizer)
        write_answers(self._folder, part, self._config.format, answers, whole)
        counts = count_answers(answers) | {"num_conversations": len(whole)}
        return {key: [value] for key, value in counts.items()}


def count_answers(answers: list[dict[str, Any]]) -> dict[str, int]:
    """num_rows, num_errors, num_prompt_tokens, num_tokens, num_denoise_steps."""
    used = [answer["usage"] for answer in answers if answer["usage"] is not None]
    return {
        "num_rows": len({answer["index"] for answer in answers}),
        "num_errors": sum(answer["error"] is not None for answer in answers),
        "num_prompt_tokens": sum(usage["prompt_tokens"] for usage in used),
        "num_tokens": sum(usage["completion_tokens"] for usage in used),
        "num_denoise_steps": sum(usage["denoise_steps"] for usage in used),
    }
