"""Suite ``evaluation``: answers of an evaluation against the public manner.

The public manner (`NaiveSampler`): one request at a time, every denoise step of every block, on
past the text that ends the answer, the prefix read again for each block. Ours: continuous batching
on the engine, where a request leaves once its `until` text is there; the same at one request at a
time is reported beside it. float32, so that answers must be equal; the shape of SmolLM2-135M with
random weights, block 32. Random weights write no `until`, so it is taken to appear after a quarter
to a half of the budget, at a fixed length for each request.
"""

from collections.abc import Iterator

import torch

from a2d_ray.config import BenchmarkConfig
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, Request
from benchmarks.harness import Case, measure
from benchmarks.models import make_model, make_prompt, mask_id
from benchmarks.naive_sampling import NaiveSampler
from benchmarks.sampling import make_engine, step_params

BLOCK_SIZE = 32
NUM_PROMPT = 192


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
    """Wall seconds per request, two tokens per forward."""
    num_requests, num_new = (4, 64) if config.quick else (8, 128)
    budget = step_params(num_new, tokens_per_forward=2)
    model = make_model("llama", torch.float32, config.seed)
    naive = NaiveSampler(model, mask_id=mask_id(), block_size=BLOCK_SIZE)
    prompts = [make_prompt(NUM_PROMPT, config.seed + index) for index in range(num_requests)]
    lengths = [num_new * (num_requests + i) // (4 * num_requests) for i in range(num_requests)]
    engines = {
        running: make_engine(model, BLOCK_SIZE, max_running=running)
        for running in (1, num_requests)
    }

    answers: dict[object, list[list[int]]] = {}

    def ours(max_running: int) -> None:
        answers[max_running] = answer_until(engines[max_running], prompts, lengths, budget)

    def public() -> None:
        wholes = [naive.sample(prompt, budget) for prompt in prompts]
        answers["public"] = [w[:length] for w, length in zip(wholes, lengths, strict=True)]

    # The timed runs are those whose answers are compared: a suite has 15 minutes.
    timing = measure(
        {
            "ours": lambda: ours(num_requests),
            "one": lambda: ours(1),
            "naive": public,
            "floor": lambda: [naive.bare_forwards(prompt, budget) for prompt in prompts],
        },
        repeats=1,
        warmup=0,
    )
    num_forwards = naive.num_forwards // 2  # the floor makes the same ones
    num_equal = sum(len(set(map(tuple, each))) == 1 for each in zip(*answers.values(), strict=True))
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
            "answer_tokens": lengths,
            "budget_tokens": num_new,
        },
    )


def answer_until(
    engine: Engine, prompts: list[list[int]], lengths: list[int], params: SamplingParams
) -> list[list[int]]:
    """Answers of requests that arrive together; each leaves once it has its length."""
    answers: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add_request(Request(request_id=str(index), prompt=[prompt], params=params))
    while engine.has_unfinished():
        for output in engine.step():
            index = int(output.request_id)
            answers[index] += output.token_ids
            if len(answers[index]) >= lengths[index]:
                engine.abort(output.request_id)
    return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]
