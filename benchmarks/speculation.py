"""Suite ``speculation``: the AR mode's answers by four ways to decode them.

On the checkpoint of a finished quickstart, all contenders in one process and in turns:
transformers' ``generate`` with its cache on the same weights under causal attention; rule ``ar`` in
our engine; rule ``threshold``, which gives other answers; rule ``speculate``.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from a2d_ray.config import BenchmarkConfig
from a2d_ray.evaluation.harness.exact_match import held_out_tasks
from a2d_ray.generation.decoding.canvas import Segments
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.quickstart.recipe import TASKS
from a2d_ray.text.language_model import LanguageModel, load
from benchmarks import quality
from benchmarks.ar_baseline import ar_model
from benchmarks.harness import Case, measure

MAX_TOKENS = 32
CLIENTS = (2, 4, 8, 16)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
UNIT = "answer tokens per CPU second"


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """``NAME_generate``, ``NAME_ar``, ``NAME_threshold``; ``clients2`` ...; ``json``.

    Raises:
        ValueError: no finished quickstart in ``root``, or a checkpoint without an AR mode.
    """
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    checkpoint = Path(config.root).expanduser() / "train" / "checkpoint-final"
    if not (checkpoint / "config.json").is_file():
        fix = "run `make quickstart` first, or give its directory"
        raise ValueError(f"root={config.root} holds no finished quickstart: {fix}")
    bench = _Bench(load(checkpoint), checkpoint)
    num_tasks = 4 if config.quick else 24
    wanted = config.cases
    for name in TASKS:
        if wanted is None or name in wanted:
            yield from bench.one_client(name, num_tasks)
    for clients in CLIENTS:
        if wanted is None or f"clients{clients}" in wanted:
            yield bench.many_clients(clients, 2 if config.quick else 7)
    if wanted is None or "json" in wanted:
        yield bench.json_answers(num_tasks)


@dataclass
class Score(quality.Score):
    """What a contender did on a task set; of its answers, those that are rule ``ar``'s."""

    num_equal: int = 0


class _Bench:
    def __init__(self, lm: LanguageModel, checkpoint: Path) -> None:
        self.lm = lm
        self.ar = ar_model(checkpoint, lm.model.dtype)
        self.mask_id = lm.contract.mask_token_id

    def engine(self) -> Engine:
        return self.lm.make_engine(EngineOptions(prefix_cache=False))

    def one_client(self, name: str, num_tasks: int) -> Iterator[Case]:
        """One request after the other; the first one warms up."""
        engine = self.engine()
        answers: dict[str, Callable[[Segments], tuple[list[int], int]]] = {
            "generate": self.by_generate,
            "ar": lambda prompt: _answer(engine, prompt, "ar"),
            "threshold": lambda prompt: _answer(engine, prompt, "threshold"),
            "speculate": lambda prompt: _answer(engine, prompt, "speculate"),
        }
        scores = {rule: Score() for rule in answers}
        for index, task in enumerate(held_out_tasks(name, num_tasks + 1)):
            *asked, expected = task["messages"]
            prompt = self.lm.encode(asked)
            found = {}
            for rule, answer in answers.items():
                started = time.process_time()
                ids, num_forwards = answer(prompt)
                found[rule] = (time.process_time() - started, ids, num_forwards)
            if index == 0:
                continue
            for rule, (seconds, ids, num_forwards) in found.items():
                score = scores[rule]
                score.cpu_s += seconds
                score.num_tokens += _num_written(ids)
                score.num_forwards += num_forwards
                score.num_right += self.text(ids) == expected["content"].strip()
                score.num_equal += ids == found["ar"][1]
        facts = {
            "num_tasks": num_tasks,
            "dtype": str(self.lm.model.dtype),
            "exact_match": {r: round(s.num_right / num_tasks, 3) for r, s in scores.items()},
            "equal_to_ar": {r: round(s.num_equal / num_tasks, 3) for r, s in scores.items()},
            "tokens_per_forward": {
                r: round(s.num_tokens / s.num_forwards, 2) for r, s in scores.items()
            },
        }
        ours = scores.pop("speculate")
        for rule, score in scores.items():
            yield Case(
                name=f"{name}_{rule}",
                ours=ours.tokens_per_s,
                baseline=score.tokens_per_s,
                unit=UNIT,
                is_cost=False,
                baseline_forwards=score.num_forwards,
                facts=facts,
            )

    def many_clients(self, num_clients: int, repeats: int) -> Case:
        """As many requests at a time; each answers one task, of each kind in turn."""
        sets = [held_out_tasks(name, num_clients) for name in TASKS]
        tasks = [task for group in zip(*sets, strict=True) for task in group][: 2 * num_clients]
        prompts = [self.lm.encode(task["messages"][:-1]) for task in tasks]
        counted: dict[str, int] = {}

        def answer_all(rule: str, engine: Engine) -> None:
            waiting = list(prompts)
            num_tokens = number = 0
            while waiting or engine.has_unfinished():
                while waiting and engine.num_running + engine.num_waiting < num_clients:
                    params = SamplingParams(rule=rule, max_new_tokens=MAX_TOKENS)
                    request = Request(request_id=str(number), prompt=waiting.pop(0), params=params)
                    engine.add_request(request)
                    number += 1
                num_tokens += sum(len(output.token_ids) for output in engine.step())
            counted[rule] = num_tokens + len(prompts)

        engines = {rule: self.engine() for rule in ("ar", "speculate")}
        times = measure(
            {
                rule: lambda rule=rule, engine=engine: answer_all(rule, engine)  # type: ignore[misc]
                for rule, engine in engines.items()
            },
            repeats=repeats,
        )
        return Case(
            name=f"clients{num_clients}",
            ours=counted["speculate"] / times["speculate"].cpu_s,
            baseline=counted["ar"] / times["ar"].cpu_s,
            unit=UNIT,
            is_cost=False,
            facts={"num_tasks": len(tasks), "equal_length": counted["ar"] == counted["speculate"]},
        )

    def json_answers(self, num_tasks: int) -> Case:
        """Records under a JSON schema, one client."""
        from llguidance import LLMatcher

        from a2d_ray.serving.model.grammars import GrammarCompiler

        vocab_size = self.lm.model.config.vocab_size
        compiler = GrammarCompiler(self.lm.tokenizer, vocab_size, self.lm.eos_token_ids)
        source = LLMatcher.grammar_from_json_schema(SCHEMA)
        engine = self.engine()
        scores = {"ar": Score(), "speculate": Score()}
        for index, task in enumerate(held_out_tasks("records", num_tasks + 1)):
            prompt = self.lm.encode(task["messages"][:-1])
            found: dict[str, list[int]] = {}
            for rule, score in scores.items():
                grammar = compiler.compile(source, "schema")
                started = time.process_time()
                ids, num_forwards = _answer(engine, prompt, rule, grammar)
                seconds = time.process_time() - started
                found[rule] = ids
                if index:
                    score.cpu_s += seconds
                    score.num_tokens += _num_written(ids)
                    score.num_forwards += num_forwards
                    score.num_right += _is_record(self.text(ids))
                    score.num_equal += ids == found["ar"]
        ours, plain = scores["speculate"], scores["ar"]
        return Case(
            name="json",
            ours=ours.tokens_per_s,
            baseline=plain.tokens_per_s,
            unit=UNIT,
            is_cost=False,
            baseline_forwards=plain.num_forwards,
            facts={
                "valid": round(ours.num_right / num_tasks, 3),
                "equal_to_ar": round(ours.num_equal / num_tasks, 3),
                "tokens_per_forward": round(ours.num_tokens / ours.num_forwards, 2),
            },
        )

    def by_generate(self, prompt: Segments) -> tuple[list[int], int]:
        """transformers' greedy answer: a forward per token."""
        ids = torch.tensor([[token for segment in prompt for token in segment]])
        written = self.ar.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            suppress_tokens=[self.mask_id],
            eos_token_id=sorted(self.lm.eos_token_ids),
            pad_token_id=self.lm.tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        return [i for i in written if i not in self.lm.eos_token_ids], len(written)

    def text(self, ids: list[int]) -> str:
        return self.lm.tokenizer.decode(ids).strip()


def _answer(
    engine: Engine, prompt: Segments, rule: str, grammar: Any = None
) -> tuple[list[int], int]:
    """Answer and its forwards."""
    params = SamplingParams(rule=rule, max_new_tokens=MAX_TOKENS)
    engine.add_request(Request(request_id="0", prompt=prompt, params=params, grammar=grammar))
    ids: list[int] = []
    num_forwards = 0
    while engine.has_unfinished():
        for output in engine.step():
            ids += output.token_ids
            num_forwards = output.num_forwards
    return ids, num_forwards


def _num_written(ids: list[int]) -> int:
    """Tokens of an answer, with its end of turn unless it was cut."""
    return min(len(ids) + 1, MAX_TOKENS)


def _is_record(text: str) -> bool:
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        return False
    return record.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
