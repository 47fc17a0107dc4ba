"""Suite ``evaluation``: answers of an evaluation against the public manner.

The public manner (`NaiveSampler`): one request at a time, every denoise step of every block, on
past the text that ends the answer, the prefix read again for each block. Ours: continuous batching
on the engine; the same at one request at a time is reported beside it. float32, so that answers
must be equal; the shape of SmolLM2-135M with random weights, block 32.
"""

from collections.abc import Iterator
from typing import Any

import torch

from a2d_ray.api import LanguageModel
from a2d_ray.benchmarks.harness import Case, measure
from a2d_ray.benchmarks.naive_sampling import NaiveSampler
from a2d_ray.benchmarks.sampling import MASK_ID, make_model, make_prompt
from a2d_ray.config import BenchmarkConfig
from a2d_ray.generation.params import SamplingParams
from a2d_ray.generation.scheduler import EngineOptions
from a2d_ray.models.contract import Contract

BLOCK_SIZE, NUM_PROMPT = 32, 192


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """The one case, ``evaluation``.

    Raises:
        ValueError: an unknown case.
    """
    unknown = set(config.cases or ()) - {"evaluation"}
    if unknown:
        raise ValueError(f"cases: {sorted(unknown)} unknown, choose from ['evaluation']")
    torch.set_num_threads(config.threads)
    yield evaluation(config)


def evaluation(config: BenchmarkConfig) -> Case:
    """Wall seconds per request; every answer ends in the second fifth of its budget."""
    num_requests, num_new = (4, 64) if config.quick else (8, 128)
    budget = SamplingParams(
        max_new_tokens=num_new, rule="steps", steps=num_new // 2, ignore_eos=True
    )
    model: Any = make_model("llama", torch.float32, config.seed)
    contract = Contract(objective="bd3lm", mask_token_id=MASK_ID, block_size=BLOCK_SIZE)
    lm = LanguageModel(model, None, contract)
    naive = NaiveSampler(model, mask_id=MASK_ID, block_size=BLOCK_SIZE)
    prompts = [make_prompt(NUM_PROMPT, config.seed + index) for index in range(num_requests)]

    wholes = [naive.sample(prompt, budget) for prompt in prompts]
    num_forwards = naive.num_forwards
    stops = [_late_token(whole, num_new // 4) for whole in wholes]
    expected = [whole[: whole.index(stop)] for whole, stop in zip(wholes, stops, strict=True)]
    asked = [
        ((tuple(prompt),), budget.model_copy(update={"stop_token_ids": (stop,)}))
        for prompt, stop in zip(prompts, stops, strict=True)
    ]

    def ours(max_running: int) -> list[list[int]]:
        options = EngineOptions(max_running=max_running, prefix_cache=False)
        answers = dict(lm.answer_each(asked, options))
        return [answers[index].token_ids for index in range(num_requests)]

    num_equal = sum(a == b for a, b in zip(ours(num_requests), expected, strict=True))
    timing = measure(
        {
            "ours": lambda: ours(num_requests),
            "one": lambda: ours(1),
            "naive": lambda: [naive.sample(prompt, budget) for prompt in prompts],
            "floor": lambda: [naive.bare_forwards(prompt, budget) for prompt in prompts],
        },
        repeats=1,
        warmup=0,
    )
    seconds = {name: taken.wall_s / num_requests for name, taken in timing.items()}
    return Case(
        name="evaluation",
        ours=seconds["ours"],
        baseline=seconds["naive"],
        unit="seconds per request",
        baseline_forwards=num_forwards,
        baseline_floor=seconds["floor"],
        facts={
            "ours_concurrency_1": round(seconds["one"], 4),
            "ratio_concurrency_1": round(seconds["naive"] / seconds["one"], 3),
            "cpu_s_per_request": {
                name: round(taken.cpu_s / num_requests, 4) for name, taken in timing.items()
            },
            "equal_answers": f"{num_equal} of {num_requests}",
            "answer_tokens": [len(answer) for answer in expected],
            "budget_tokens": num_new,
        },
    )


def _late_token(whole: list[int], start: int) -> int:
    """The first token from `start` on that did not occur before: what ends the answer."""
    fresh = (token for place, token in enumerate(whole) if token not in whole[: max(place, start)])
    return next(fresh, whole[-1])
