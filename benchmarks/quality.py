"""Suite ``quality``: a trained checkpoint against the AR original, at the quality that both have.

The checkpoint is that of a finished quickstart. The AR original is fine-tuned on the same rows, its
same layers, for the same CPU time. Both answer the same held-out tasks one at a time, in turns:
ours with rule ``threshold``; the AR model with transformers' ``generate`` and its cache, and, like
for like, as one token after the other in our own engine (block size 1, as many tokens). The
fine-tuned model is kept in ``root/ar-original``, for `jobs/evaluate.py frontier` too.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from a2d_ray.config import BenchmarkConfig, TrainConfig
from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.evaluation.harness.exact_match import held_out_tasks
from a2d_ray.generation.decoding.canvas import Segments
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.quickstart.recipe import TASKS, sampling_params
from a2d_ray.text.language_model import LanguageModel, load
from benchmarks.ar_baseline import (
    ar_model,
    fine_tune,
    kept_or_made,
    training_cpu_s,
)
from benchmarks.harness import Case

AR_LR = 3e-4
THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.5)
UNIT = "answer tokens per CPU second"


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """Per task ``NAME_transformers`` and ``NAME_engine``.

    Raises:
        ValueError: no finished quickstart in ``root``.
    """
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    root = Path(config.root).expanduser()
    run_directory = root / "train"
    checkpoint = run_directory / "checkpoint-final"
    if not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"root={config.root} holds no finished quickstart: run `make quickstart` first, or "
            "give its directory"
        )
    train = TrainConfig.model_validate(yaml.safe_load((run_directory / "config.yaml").read_text()))
    lm = load(checkpoint, dtype="bfloat16")
    ar, facts = _fine_tuned(config, root, train, lm.tokenizer)
    contenders = _Contenders(lm, ar)
    for name in TASKS:
        if config.cases is None or name in config.cases:
            yield from _compare(name, contenders, 8 if config.quick else 48, facts)


def _fine_tuned(
    config: BenchmarkConfig, root: Path, train: TrainConfig, tokenizer: Any
) -> tuple[Any, dict]:
    """The AR model and how it was trained, if it was not trained so before."""
    assert isinstance(train.scaling.num_workers, int)
    budget = config.budget_s or training_cpu_s(root / "train", train.scaling.num_workers)

    def make() -> tuple[Any, dict[str, Any]]:
        plan = json.loads((root / "train" / "plan.json").read_text())
        packed = PackedSet.open(plan["packed_path"])
        model = ar_model(root / "model", torch.float32)
        return model, fine_tune(model, train, packed, budget_s=budget, lr=AR_LR)

    asked = {"cpu_s": round(budget), "lr": AR_LR}
    model, done = kept_or_made(root / "ar-original", asked, make, tokenizer)
    return model, {"ar_training": done}


@dataclass
class Score:
    """What a contender did on a task set."""

    cpu_s: float = 0.0
    num_tokens: int = 0
    num_forwards: int = 0
    num_right: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens per CPU second."""
        return self.num_tokens / self.cpu_s

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens, end of turn included, per forward."""
        return round(self.num_tokens / self.num_forwards, 2)

    @property
    def exact_match(self) -> float:
        """Share of right answers."""
        return round(self.num_right / len(self.seconds), 3)

    def add(self, seconds: float, num_tokens: int, num_forwards: int, is_right: bool) -> None:
        """Counts one answer."""
        self.cpu_s += seconds
        self.seconds.append(seconds)
        self.num_tokens += num_tokens
        self.num_forwards += num_forwards
        self.num_right += is_right


class _Contenders:
    """The three ways to answer."""

    def __init__(self, lm: LanguageModel, ar: Any) -> None:
        self.lm = lm
        self.ar = ar
        self.params: SamplingParams = sampling_params("threshold")
        options = EngineOptions(prefix_cache=False)
        self.engine = lm.make_engine(options)
        single = _at_block_size_1(lm)
        self.single = single.make_engine(options)

    def ours(self, prompt: Segments, threshold: float) -> tuple[list[int], int]:
        """Answer and forwards of the diffusion model."""
        params = self.params.model_copy(update={"threshold": threshold})
        return _answer(self.engine, prompt, params)

    def transformers(self, prompt: Segments) -> tuple[list[int], int]:
        """Answer of the AR model with `generate`: a forward per token."""
        ids = torch.tensor([[token for segment in prompt for token in segment]])
        written = self.ar.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.params.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self.lm.eos_token_ids),
            pad_token_id=self.lm.tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        return written, len(written)

    def one_by_one(self, prompt: Segments, num_tokens: int) -> tuple[list[int], int]:
        """As many tokens as the AR model wrote, at block size 1 in our engine."""
        params = SamplingParams(
            max_new_tokens=num_tokens, rule="steps", steps=num_tokens, ignore_eos=True
        )
        return _answer(self.single, prompt, params)


def _at_block_size_1(lm: LanguageModel) -> LanguageModel:
    contract = lm.contract.model_copy(update={"block_size": 1, "block_sizes": (1,)})
    return replace(lm, contract=contract)


def _compare(
    name: str, contenders: _Contenders, num_tasks: int, facts: dict[str, Any]
) -> Iterator[Case]:
    ours: dict[float, Score] = {threshold: Score() for threshold in THRESHOLDS}
    ar = Score()
    single = Score()
    tokenizer = contenders.lm.tokenizer
    eos = contenders.lm.eos_token_ids
    for index, task in enumerate(held_out_tasks(name, num_tasks + 1)):
        *asked, expected = task["messages"]
        prompt = contenders.lm.encode(asked)

        def is_right(ids: list[int], expected: str = expected["content"]) -> bool:
            text = tokenizer.decode([i for i in ids if i not in eos])
            return bool(text.strip() == expected.strip())

        timed = [
            (score, _timed(contenders.ours, prompt, threshold)) for threshold, score in ours.items()
        ]
        timed.append((ar, _timed(contenders.transformers, prompt)))
        num_written = len(timed[-1][1][1])
        timed.append((single, _timed(contenders.one_by_one, prompt, num_written)))
        if index == 0:
            continue  # warms up
        for score, (seconds, ids, forwards) in timed:
            score.add(seconds, len(ids), forwards, is_right(ids))
    shipped = ours[contenders.params.threshold]
    facts = facts | {
        "num_tasks": num_tasks,
        "exact_match": {"ours": shipped.exact_match, "ar": ar.exact_match},
        "tokens_per_forward": shipped.tokens_per_forward,
        "by_threshold": {
            threshold: {
                "exact_match": score.exact_match,
                "tokens_per_forward": score.tokens_per_forward,
                "tokens_per_cpu_s": round(score.tokens_per_s, 1),
            }
            for threshold, score in ours.items()
        },
        "median_cpu_s_per_answer": {
            key: round(statistics.median(score.seconds), 4)
            for key, score in (("ours", shipped), ("transformers", ar), ("engine", single))
        },
        "cpu_s_per_forward": {
            key: round(score.cpu_s / score.num_forwards, 4)
            for key, score in (("ours", shipped), ("transformers", ar), ("engine", single))
        },
    }
    for suffix, other in (("transformers", ar), ("engine", single)):
        yield Case(
            name=f"{name}_{suffix}",
            ours=shipped.tokens_per_s,
            baseline=other.tokens_per_s,
            unit=UNIT,
            is_cost=False,
            baseline_forwards=other.num_forwards,
            facts=facts,
        )


def _timed(
    answer: Callable[..., tuple[list[int], int]], *args: Any
) -> tuple[float, list[int], int]:
    started = time.process_time()
    ids, num_forwards = answer(*args)
    return time.process_time() - started, ids, num_forwards


def _answer(engine: Engine, prompt: Segments, params: SamplingParams) -> tuple[list[int], int]:
    """Answer and its denoise steps."""
    engine.add_request(Request(request_id="0", prompt=prompt, params=params))
    ids: list[int] = []
    num_steps = 0
    while engine.has_unfinished():
        for output in engine.step():
            ids += output.token_ids
            num_steps = output.num_denoise_steps
    return ids, num_steps
