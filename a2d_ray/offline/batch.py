"""Offline generation on a Ray cluster: engines in the actors of Ray Data answer part after part.

Actors read their own prompts and write their own answers; through Ray go part numbers and counts
alone. So no task waits for a CPU that an actor holds, and a killed job loses what was running.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from tqdm import tqdm

from a2d_ray.config import GenerateConfig
from a2d_ray.offline.answers import PartAnswerer
from a2d_ray.offline.parts import (
    BatchFolder,
    BatchPlan,
    read_prompts,
    record_model,
    write_answers,
)

# Threads that spin while they wait starve those beside them; the Hub's tokenizers fork.
_WORKER_ENV = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def answer_parts(config: GenerateConfig, plan: BatchPlan) -> Iterator[dict[str, int]]:
    """Answers the missing parts; yields the counts of each as it is done.

    Args:
        config: the job.
        plan: of it.

    Yields:
        num_rows, num_errors, num_prompt_tokens, num_tokens, num_denoise_steps of a part.

    Raises:
        ValueError: the cluster has too few CPUs or GPUs.
    """
    num_replicas = min(config.num_replicas, len(plan.missing))
    if not num_replicas:
        return
    check_cluster(config)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    items = [{"part": part} for part in plan.missing]
    answered = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        BatchReplica,
        fn_constructor_args=(config.model_dump(), plan.folder.uri),
        batch_size=1,
        compute=ActorPoolStrategy(size=num_replicas),
        num_cpus=config.cpus_per_replica,
        num_gpus=config.gpus_per_replica,
        runtime_env={"env_vars": {**_WORKER_ENV, "OMP_NUM_THREADS": str(config.cpus_per_replica)}},
    )
    for row in answered.iter_rows():
        yield {key: int(value) for key, value in row.items()}


def report_progress(config: GenerateConfig, plan: BatchPlan) -> str:
    """Answers the missing parts under a progress bar; returns a line on what it took."""
    started = time.perf_counter()
    total = Counter[str]()
    num_missing = len(plan.missing) * config.rows_per_part
    with tqdm(total=plan.num_rows, unit="prompt", desc="generate") as bar:
        bar.update(max(0, plan.num_rows - num_missing))
        for counts in answer_parts(config, plan):
            total.update(counts)
            bar.set_postfix({"tokens/s": f"{total['num_tokens'] / _since(started):.0f}"})
            bar.update(counts["num_rows"])
    seconds = _since(started)
    return (
        f"{total['num_rows']:,} prompts, {total['num_errors']:,} of them with errors, "
        f"{total['num_prompt_tokens']:,} tokens in and {total['num_tokens']:,} out in "
        f"{seconds:.0f} s: {total['num_tokens'] / seconds:.1f} tokens/s, "
        f"{total['num_tokens'] / max(1, total['num_denoise_steps']):.2f} tokens per denoise step"
    )


def _since(started: float) -> float:
    return max(time.perf_counter() - started, 1e-9)


def check_cluster(config: GenerateConfig) -> None:
    """Refuses more replicas than there are CPUs or GPUs, instead of waiting for ever.

    Raises:
        ValueError: says how many there are.
    """
    there = ray.cluster_resources()
    for name, each in (("CPU", config.cpus_per_replica), ("GPU", config.gpus_per_replica)):
        needed = config.num_replicas * each
        if needed > there.get(name, 0):
            raise ValueError(
                f"num_replicas ({config.num_replicas}) x {name.lower()}s_per_replica ({each}) ask "
                f"for {needed} {name}s, but Ray has {there.get(name, 0):g}: lower num_replicas"
            )


class BatchReplica:
    """An engine in an actor of Ray Data.

    Args:
        config: the `GenerateConfig` as plain values.
        uri: the output directory.
    """

    def __init__(self, config: dict[str, Any], uri: str) -> None:
        import torch

        from a2d_ray.text.language_model import load

        self._config = GenerateConfig.model_validate(config)
        self._folder = BatchFolder(uri)
        torch.set_num_threads(self._config.cpus_per_replica)
        lm = load(**self._config.model.model_dump(exclude_none=True))
        record_model(self._folder, lm.fingerprint())
        self._answerer = PartAnswerer(lm, self._config)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        (part,) = batch["part"].tolist()
        answers = self._answerer.answer(read_prompts(self._folder, part))
        write_answers(self._folder, part, self._config.format, answers)
        return {key: [value] for key, value in count_answers(answers).items()}


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
