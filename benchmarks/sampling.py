"""Suite ``sampling``: the engine against block diffusion decoding as it is commonly written.

A Llama of 135 M parameters (the shape of SmolLM2-135M) with random weights in bfloat16. Costs are
process CPU seconds; contenders take turns.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from a2d_ray.config import BenchmarkConfig
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.models.contract import Contract
from benchmarks.harness import Case, Timing, measure
from benchmarks.models import MAX_LENGTH, make_model, make_prompt, mask_id
from benchmarks.naive_sampling import NaiveSampler


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """The cases that the configuration names; all of them if it names none.

    Raises:
        ValueError: an unknown case.
    """
    torch.set_num_threads(config.threads)
    cases: dict[str, Callable[[BenchmarkConfig], Case]] = {
        "p64_t1": partial(against_naive, "p64_t1", num_prompt=64, tokens_per_forward=1),
        "p512_t4": partial(against_naive, "p512_t4", num_prompt=512, tokens_per_forward=4),
        "p1024_t4": partial(against_naive, "p1024_t4", num_prompt=1_024, tokens_per_forward=4),
        "growth": growth,
        "clients8": clients,
        "prefix_hit": prefix_hit,
        "ar_transformers": ar_transformers,
        "ar_engine": ar_engine,
    }
    unknown = set(config.cases or ()) - set(cases)
    if unknown:
        raise ValueError(f"cases: {sorted(unknown)} unknown, choose from {sorted(cases)}")
    for name in config.cases or cases:
        yield cases[name](config)


def make_engine(model: Any, block_size: int, **options: Any) -> Engine:
    """An engine for block diffusion; without prefix cache unless told."""
    contract = Contract(objective="bd3lm", mask_token_id=mask_id(), block_size=block_size)
    options = {"prefix_cache": False, "kv_tokens": 8_192} | options
    return Engine(
        model, contract, eos_ids=(), max_length=MAX_LENGTH, options=EngineOptions(**options)
    )


def answer(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """Answers of requests that arrive together."""
    answers: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add_request(Request(request_id=str(index), prompt=[prompt], params=params))
    while engine.has_unfinished():
        for output in engine.step():
            answers[int(output.request_id)] += output.token_ids
    return answers


def step_params(num_new: int, tokens_per_forward: int) -> SamplingParams:
    """Rule ``steps`` with a fixed number of tokens per forward."""
    return SamplingParams(
        max_new_tokens=num_new, rule="steps", steps=num_new // tokens_per_forward, ignore_eos=True
    )


def against_naive(
    name: str, config: BenchmarkConfig, *, num_prompt: int, tokens_per_forward: int
) -> Case:
    """CPU seconds per token, block 32. In float32 both must give the same tokens."""
    num_new = 64 if config.quick else 128
    params = step_params(num_new, tokens_per_forward)
    prompt = make_prompt(num_prompt, config.seed)
    model = make_model("llama", torch.bfloat16, config.seed)
    engine = make_engine(model, 32)
    naive = NaiveSampler(model, mask_id=mask_id(), block_size=32)
    ours = answer(engine, [prompt], params)[0]
    theirs = naive.sample(prompt, params)
    num_forwards = naive.num_forwards
    timing = measure(
        {
            "ours": lambda: answer(engine, [prompt], params),
            "naive": lambda: naive.sample(prompt, params),
            "floor": lambda: naive.bare_forwards(prompt, params),
        },
        repeats=1 if config.quick else 3,
        warmup=0,
    )
    num_checked = _check_tokens(config, prompt, params)
    return Case(
        name=name,
        ours=timing["ours"].cpu_s / num_new,
        baseline=timing["naive"].cpu_s / num_new,
        unit="CPU seconds per token",
        baseline_forwards=num_forwards,
        baseline_floor=timing["floor"].cpu_s / num_new,
        facts=_wall(timing)
        | {
            "identical_tokens_float32": num_checked,
            "bfloat16_equal_share": _equal_share(ours, theirs),
        },
    )


def _check_tokens(config: BenchmarkConfig, prompt: list[int], params: SamplingParams) -> int:
    """Number of tokens that both give alike in float32.

    Raises:
        RuntimeError: they differ.
    """
    num_new = 32 if config.quick else params.max_new_tokens
    params = step_params(num_new, params.max_new_tokens // (params.steps or 1))
    model = make_model("llama", torch.float32, config.seed)
    ours = answer(make_engine(model, 32), [prompt], params)[0]
    theirs = NaiveSampler(model, mask_id=mask_id(), block_size=32).sample(prompt, params)
    if ours != theirs:
        raise RuntimeError(f"engine and baseline differ in float32: {ours} and {theirs}")
    return len(ours)


def growth(config: BenchmarkConfig) -> Case:
    """Seconds per token of a long answer against a short one (block 32, 4 tokens per forward)."""
    long = 256 if config.quick else 1_024
    engine = make_engine(make_model("llama", torch.bfloat16, config.seed), 32)
    prompt = make_prompt(64, config.seed)
    timing = measure(
        {str(n): partial(answer, engine, [prompt], step_params(n, 4)) for n in (long, 128)},
        repeats=1 if config.quick else 3,
    )
    return Case(
        name="growth",
        ours=timing[str(long)].cpu_s / long,
        baseline=timing["128"].cpu_s / 128,
        unit=f"CPU seconds per token, {long} generated against 128",
        facts=_wall(timing),
    )


def clients(config: BenchmarkConfig) -> Case:
    """Throughput of eight requests together against one alone (block 8)."""
    num_new, sizes = (16, (8, 1)) if config.quick else (64, (8, 4, 2, 1))
    engine = make_engine(make_model("llama", torch.bfloat16, config.seed), 8)
    prompts = [make_prompt(48 + 8 * i, config.seed + i) for i in range(8)]
    params = step_params(num_new, 1)
    timing = measure(
        {str(n): partial(answer, engine, prompts[:n], params) for n in sizes},
        repeats=1 if config.quick else 3,
    )
    speed = {n: n * num_new / timing[str(n)].cpu_s for n in sizes}
    return Case(
        name="clients8",
        ours=speed[8],
        baseline=speed[1],
        unit="tokens per CPU second, 8 requests against 1",
        is_cost=False,
        facts=_wall(timing) | {"tokens_per_s": {n: round(v, 2) for n, v in speed.items()}},
    )


def prefix_hit(config: BenchmarkConfig) -> Case:
    """Time to the first token of a prompt of 512 tokens: stored before against new."""
    model = make_model("llama", torch.bfloat16, config.seed)
    engine = make_engine(model, 32, prefix_cache=True)
    params = step_params(32, 1)
    prompts = [make_prompt(512, config.seed + i) for i in range(9)]

    def to_first_commit(prompt: list[int]) -> None:
        engine.add_request(Request(request_id="0", prompt=[prompt], params=params))
        while engine.step()[0].num_denoise_steps == 0:
            pass
        engine.abort("0")

    new = iter(prompts)
    timing = measure(
        {
            "miss": lambda: to_first_commit(next(new)),
            "hit": lambda: to_first_commit(prompts[0]),
        },
        repeats=2 if config.quick else 5,
    )
    return Case(
        name="prefix_hit",
        ours=timing["hit"].cpu_s,
        baseline=timing["miss"].cpu_s,
        unit="CPU seconds to the first committed token, 512 prompt tokens",
        facts=_wall(timing),
    )


def ar_transformers(config: BenchmarkConfig) -> Case:
    """Block diffusion at 4 tokens per forward against the AR original, `generate` with cache."""
    num_new = 32 if config.quick else 128
    params = step_params(num_new, 4)
    prompt = make_prompt(64, config.seed)
    engine = make_engine(make_model("llama", torch.bfloat16, config.seed), 32)
    ar = make_model("llama", torch.bfloat16, config.seed, is_ar=True)
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": num_new, "min_new_tokens": num_new, "do_sample": False}
    generate = partial(
        ar.generate, ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options
    )
    timing = measure(
        {"ours": partial(answer, engine, [prompt], params), "ar": generate},
        repeats=1 if config.quick else 3,
    )
    return Case(
        name="ar_transformers",
        ours=timing["ours"].cpu_s / num_new,
        baseline=timing["ar"].cpu_s / num_new,
        unit="CPU seconds per token, block 32 at 4 tokens per forward against AR",
        facts=_wall(timing),
    )


def ar_engine(config: BenchmarkConfig) -> Case:
    """The same against one token after the other in our own engine (block size 1)."""
    num_new = 32 if config.quick else 128
    model = make_model("llama", torch.bfloat16, config.seed)
    prompt = make_prompt(64, config.seed)
    block = make_engine(model, 32)
    single = make_engine(model, 1)
    timing = measure(
        {
            "ours": partial(answer, block, [prompt], step_params(num_new, 4)),
            "single": partial(answer, single, [prompt], step_params(num_new, 1)),
        },
        repeats=1 if config.quick else 3,
    )
    return Case(
        name="ar_engine",
        ours=timing["ours"].cpu_s / num_new,
        baseline=timing["single"].cpu_s / num_new,
        unit="CPU seconds per token, block 32 at 4 tokens per forward against block 1",
        facts=_wall(timing),
    )


def _equal_share(ours: list[int], theirs: list[int]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(theirs)


def _wall(timing: dict[str, Timing]) -> dict[str, Any]:
    return {"wall_s": {name: round(value.wall_s, 4) for name, value in timing.items()}}
