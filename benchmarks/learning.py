"""Suite ``learning``: what the same CPU seconds of training buy, by objective and start.

A mixture of embedded sums, sorting, spelling and chat, all layers of SmolLM2-135M, about
fifteen documents a step. Every contender trains until it has used the same CPU time, its learning
rate and warm-up following the share that it has used, and is then measured on the same held-out
rows with the same fixed draws. Three seeds, of order and noise.
"""

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from a2d_ray.config import BenchmarkConfig, TrainConfig
from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.quickstart.recipe import CHAT_TEMPLATE, SOURCE, work_offline
from benchmarks.bare_training import SCHEDULE_PLACES, BareLoop, within_budget
from benchmarks.harness import Case

SPEC = (
    "embedded/sums[train:3_000,test:80]+embedded/sorting[train:7_200,test:192]"
    "+embedded/spelling[train:1_200,test:32]+embedded/chat[train:600,test:16]"
)
BLOCK_SIZE = 4
MAX_LENGTH = 48
ROWS = 6  # a packed row holds two or three documents
SEQUENCES = 15
HELD_OUT_ROWS = 48
DRAWS = 2
DEFAULT = "default"
REFERENCE = {
    "preset": "reference",
    "block_grid": "absolute",
    "noise": "bernoulli",
    "noise_per": "sequence",
    "norm": "token",
    "corruption_warmup": 0.0,
}
# Name -> keys of the objective, and whether weights start at random.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    DEFAULT: ({}, False),
    "reference": (REFERENCE, False),
    "two_views": ({"views": 2}, False),
    "random_init": ({}, True),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One training run.

    Attributes:
        nelbo: held-out, nats per target token, in the default's layout.
        steps: optimizer steps that the budget allowed.
        targets: target tokens seen, over the views.
    """

    nelbo: float
    steps: int
    targets: int


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """The default against each other way; lower NELBO is better.

    Raises:
        ValueError: an unknown case.
    """
    unknown = set(config.cases or ()) - set(VARIANTS)
    if unknown:
        raise ValueError(f"cases: {sorted(unknown)} unknown, choose from {sorted(VARIANTS)}")
    names = [n for n in VARIANTS if n == DEFAULT or config.cases is None or n in config.cases]
    seeds = range(config.seed, config.seed + (1 if config.quick else 3))
    budget = config.budget_s or (20.0 if config.quick else 300.0)
    with tempfile.TemporaryDirectory() as root:
        runs = prepare_runs(Path(root), names)
        jobs = [(name, seed) for seed in seeds for name in names]  # seeds apart: they take turns
        workers = max(1, (os.cpu_count() or 1) // config.threads)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
            before = pool.submit(_train, *runs[DEFAULT], runs[DEFAULT], 0, 0.0, config.threads)
            futures = {
                (name, seed): pool.submit(
                    _train, *runs[name], runs[DEFAULT], seed, budget, config.threads
                )
                for name, seed in jobs
            }
            outcomes = {job: future.result() for job, future in futures.items()}
    facts: dict[str, Any] = {"cpu_s_each": budget, "nelbo_before": round(before.result().nelbo, 4)}
    by_name = {name: [outcomes[name, seed] for seed in seeds] for name in names}
    facts |= {"runs": {name: [vars(o) for o in found] for name, found in by_name.items()}}
    for name in names[1:]:
        ours, theirs = (
            statistics.median(outcome.nelbo for outcome in by_name[n]) for n in (DEFAULT, name)
        )
        yield Case(
            name=name,
            ours=ours,
            baseline=theirs,
            unit="held-out NELBO, nats per target, after equal CPU seconds",
            facts=facts,
        )


def prepare_runs(root: Path, names: list[str]) -> dict[str, tuple[dict[str, Any], str]]:
    """Per contender its run and its packed set."""
    from a2d_ray.data.pipeline import prepare
    from a2d_ray.proving.conversion import convert
    from a2d_ray.runs.cluster import running_ray

    work_offline()
    for is_random in {VARIANTS[name][1] for name in names}:
        model = _model_path(root, is_random)
        convert(SOURCE, model, random_init=is_random)
        (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    runs = {}
    with running_ray(4, is_quiet=True):
        for name in names:
            run = run_config(root, name)
            packed = prepare(run.data, run.objective, run.model.path)
            runs[name] = (run.model_dump(mode="json"), str(packed.path))
    return runs


def _model_path(root: Path, is_random: bool) -> Path:
    return root / ("random" if is_random else "converted")


def run_config(root: Path, name: str) -> TrainConfig:
    """The run of a contender."""
    changes, is_random = VARIANTS[name]
    objective: dict[str, Any] = {
        "name": "bd3lm",
        "block_size": BLOCK_SIZE,
        "views": 1,
        "corruption_warmup": 0.04,
    } | changes
    is_packed = "preset" not in changes
    streams = 1 + objective["views"]
    return TrainConfig.model_validate(
        {
            "run": {"name": name, "storage_path": str(root)},
            "model": {"path": str(_model_path(root, is_random))},
            "data": {
                "spec": SPEC,
                "packed_path": str(root / "packed"),
                "max_length": MAX_LENGTH,
                "tokens_per_row": streams * MAX_LENGTH,
                "packing": is_packed,
                "targets": "all" if is_packed else "last",
            },
            "objective": objective,
            "batch": {"rows": ROWS if is_packed else SEQUENCES},
            "optim": {"lr": 1e-3, "betas": (0.9, 0.98), "clip_norm": 1.0, "warmup": 0.04},
        }
    )


def _train(
    values: dict[str, Any],
    packed_path: str,
    judge: tuple[dict[str, Any], str],
    seed: int,
    budget_s: float,
    threads: int,
) -> Outcome:
    """Trains for `budget_s` CPU seconds of this process and measures; `judge` is the default."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    loop = BareLoop.of(TrainConfig.model_validate(values), packed_path, seed)
    targets = [loop.step(*step, SCHEDULE_PLACES)[1] for step in within_budget(budget_s)]
    return Outcome(nelbo=_held_out(loop, *judge), steps=len(targets), targets=sum(targets))


def _held_out(loop: BareLoop, values: dict[str, Any], packed_path: str) -> float:
    """NELBO with fixed draws on held-out rows of the default's set, in the default's layout."""
    from a2d_ray.diffusion.likelihood import nelbo_sums
    from a2d_ray.training.objective import layout_spec

    config = TrainConfig.model_validate(values)
    packed = PackedSet.open(packed_path)
    rows = packed.read_rows("test", range(min(HELD_OUT_ROWS, packed.num_rows("test"))))
    module = loop.module.eval()
    loaded = loop.loaded
    nats = 0.0
    num_tokens = 0
    for draw in range(DRAWS):
        with module.autocast():
            part = nelbo_sums(
                rows,
                layout_spec(config.objective, eos_id=loaded.tokenizer.eos_token_id),
                module.backbone,
                module.head,
                mask_id=loaded.contract.mask_token_id,
                draw=draw,
                device=torch.device("cpu"),
            )
        nats = nats + float(part.nats)
        num_tokens = num_tokens + int(part.num_tokens)
    return nats / num_tokens
