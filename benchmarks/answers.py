"""Suite ``answers``: right answers, and their speed, that equal CPU seconds of training buy.

SmolLM2-135M learns the quickstart's tasks in four ways, each for the same CPU seconds: its AR
original by next tokens alone (``ar``); one model for task and drafts (``joint``); the AR model for
a part of the time, then gated drafts of its answers (``gated``); block diffusion alone
(``default``). Each answers the same held-out tasks by the rule that serves it best. Seeds are of
order and noise.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from a2d_ray.config import BenchmarkConfig, TrainConfig
from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.evaluation.harness.exact_match import held_out_tasks
from a2d_ray.models.checkpoint import load_checkpoint, read_contract, save_checkpoint
from a2d_ray.models.gated_lora import settled_copy
from a2d_ray.quickstart.recipe import CHAT_TEMPLATE, SOURCE, TASKS, sampling_params, work_offline
from a2d_ray.text.language_model import LanguageModel
from a2d_ray.training.objective import trained_contract
from benchmarks.ar_baseline import ar_model, fine_tune
from benchmarks.bare_training import SCHEDULE_PLACES, BareLoop, within_budget
from benchmarks.harness import Case

SPEC = "embedded/sorting[train:600,test:60]+embedded/records[train:250,test:60]"
MAX_LENGTH = 64
ROWS = 6
BLOCK_SIZE = 8
TRAINABLE_LAYERS = 16
AR_LR = 3e-4
GATED_LR = 2e-3
AR_SHARE = 0.6  # of the budget, before gated drafts are trained
CAUSAL = {"clean_attention": "causal", "first_block": "random", "noise": "full"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ar": {},
    "joint": CAUSAL | {"ar_loss_weight": 1.0, "full_share": 0.75, "corruption_warmup": 0.04},
    "gated": CAUSAL | {"draft_target": "ar"},
    "default": {"corruption_warmup": 0.04},
}
# The rule that serves each best; its AR mode is what the others are compared with.
RULES = {"ar": "ar", "joint": "speculate", "gated": "speculate", "default": "threshold"}
JOINT = "joint"


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """``joint`` against each other way, by right answers; more is better.

    Raises:
        ValueError: an unknown case.
    """
    others = [name for name in OBJECTIVES if name != JOINT]
    unknown = set(config.cases or ()) - set(others)
    if unknown:
        raise ValueError(f"cases: {sorted(unknown)} unknown, choose from {others}")
    names = [JOINT, *(name for name in others if config.cases is None or name in config.cases)]
    seeds = range(config.seed, config.seed + (1 if config.quick else 3))
    budget = config.budget_s or (20.0 if config.quick else 300.0)
    num_tasks = 4 if config.quick else 40
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        packed = prepare(root)
        workers = max(1, (os.cpu_count() or 1) // config.threads)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
            futures = {
                (name, seed): pool.submit(
                    _train_and_answer,
                    name,
                    root,
                    packed[name],
                    seed,
                    budget,
                    num_tasks,
                    config.threads,
                )
                for seed in seeds
                for name in names
            }
            found = {job: future.result() for job, future in futures.items()}
    by_name = {name: [found[name, seed] for seed in seeds] for name in names}
    facts = {"cpu_s_each": budget, "num_tasks": num_tasks, "runs": by_name}
    for name in names[1:]:
        ours, theirs = (
            statistics.median(_accuracy(figures) for figures in by_name[n]) for n in (JOINT, name)
        )
        yield Case(
            name=name,
            ours=ours,
            baseline=theirs,
            unit="share of right answers after equal CPU seconds",
            is_cost=False,
            facts=facts,
        )


def _accuracy(figures: dict[str, Any]) -> float:
    return statistics.mean(figures[name]["exact_match"] for name in TASKS)


def prepare(root: Path) -> dict[str, str]:
    """Converts the model and packs the rows; the packed set of each contender."""
    from a2d_ray.data.pipeline import prepare as pack
    from a2d_ray.proving.conversion import convert
    from a2d_ray.runs.cluster import running_ray

    work_offline()
    model = root / "model"
    convert(SOURCE, model)
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    packed = {}
    with running_ray(4, is_quiet=True):
        for name in OBJECTIVES:
            run = run_config(root, name, model)
            packed[name] = str(pack(run.data, run.objective, run.model.path).path)
    return packed


def run_config(root: Path, name: str, model: Path) -> TrainConfig:
    """The run of a contender that trains `model`."""
    is_gated = name == "gated"
    trained: dict[str, Any] = {"trainable_layers": TRAINABLE_LAYERS}
    if is_gated:
        trained = {"lora": {"r": 32, "alpha": 64, "noised_only": True}}
    return TrainConfig.model_validate(
        {
            "run": {"name": name, "storage_path": str(root)},
            "model": {"path": str(model), **trained},
            "data": {
                "spec": SPEC,
                "packed_path": str(root / "packed"),
                "max_length": MAX_LENGTH,
                "tokens_per_row": 2 * MAX_LENGTH,
            },
            "objective": {"name": "bd3lm", "block_size": BLOCK_SIZE} | OBJECTIVES[name],
            "batch": {"rows": ROWS},
            "optim": {
                "lr": GATED_LR if is_gated else 5e-4,
                "betas": (0.9, 0.98),
                "clip_norm": 1.0,
                "warmup": 0.04,
            },
        }
    )


def _train_and_answer(
    name: str,
    root: Path,
    packed: str,
    seed: int,
    budget_s: float,
    num_tasks: int,
    threads: int,
) -> dict[str, Any]:
    """Trains contender `name` for `budget_s` CPU seconds of this process, and asks it the tasks."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        model = root / "model"
        if name in ("ar", "gated"):
            share = AR_SHARE if name == "gated" else 1.0
            facts["ar"] = _tune_ar(root, packed, seed, share * budget_s, Path(scratch))
            model = Path(scratch)
            budget_s = (1.0 - share) * budget_s
        lm = (
            _open(model)
            if name == "ar"
            else _train(root, name, model, packed, seed, budget_s, facts)
        )
        return facts | _answers(lm, RULES[name], num_tasks)


def _tune_ar(root: Path, packed: str, seed: int, budget_s: float, output: Path) -> dict[str, Any]:
    """Fine-tunes the AR original, and writes it as a converted model."""
    config = run_config(root, "joint", root / "model")
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
    model = ar_model(root / "model", torch.float32)
    facts = fine_tune(model, config, PackedSet.open(packed), budget_s=budget_s, lr=AR_LR)
    loaded = load_checkpoint(root / "model", dtype=torch.float32, device=torch.device("cpu"))
    save_checkpoint(
        output,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        contract=read_contract(root / "model"),
        state_dict=model.state_dict(),
    )
    return facts


def _open(path: Path) -> LanguageModel:
    loaded = load_checkpoint(path, dtype=torch.float32, device=torch.device("cpu"))
    return LanguageModel(loaded.model, loaded.tokenizer, loaded.contract)


def _train(
    root: Path,
    name: str,
    model: Path,
    packed: str,
    seed: int,
    budget_s: float,
    facts: dict[str, Any],
) -> LanguageModel:
    """Trains `model` in this process; says in `facts` how many steps that were."""
    config = run_config(root, name, model)
    loop = BareLoop.of(config, packed, seed)
    targets = [loop.step(*step, SCHEDULE_PLACES)[1] for step in within_budget(budget_s)]
    facts |= {"steps": len(targets), "targets": sum(targets)}
    trained = settled_copy(loop.loaded.model.eval()).requires_grad_(False)
    contract = trained_contract(loop.loaded.contract, config)
    return LanguageModel(trained, loop.loaded.tokenizer, contract)


def _answers(lm: LanguageModel, rule: str, num_tasks: int) -> dict[str, Any]:
    """Per task set: exact_match, tokens_per_forward, tokens_per_cpu_s (end of turn included)."""
    params = sampling_params(rule)
    results: dict[str, Any] = {}
    for name in TASKS:
        warm_up, *tasks = held_out_tasks(name, num_tasks + 1)
        lm.generate([warm_up["messages"][:-1]], params)
        started = time.process_time()
        answers = [lm.generate([task["messages"][:-1]], params)[0] for task in tasks]
        cpu_s = time.process_time() - started
        expected = [task["messages"][-1]["content"].strip() for task in tasks]
        num_tokens = sum(len(a.token_ids) + (a.finish_reason == "stop") for a in answers)
        results[name] = {
            "exact_match": statistics.mean(
                answer.text.strip() == right
                for answer, right in zip(answers, expected, strict=True)
            ),
            "tokens_per_forward": round(num_tokens / sum(a.num_forwards for a in answers), 2),
            "tokens_per_cpu_s": round(num_tokens / cpu_s, 1),
        }
    return results
