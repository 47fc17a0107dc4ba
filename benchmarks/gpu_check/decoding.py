"""The engine's rounds: tokens per second alone and beside others."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.models.contract import Contract
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.rounds import round_costs
from benchmarks.gpu_check.training import make_a2d_model

PART = "decoding"
_BLOCK = 32
_PROFILED_TOKENS = 32
_SAMPLED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95}
_NO_GPU = "skipped: only a GPU has CUDA graphs"
_NOT_COUNTED = "skipped: only a GPU counts them"
# Tokens per second of an H100 on paper, 2.5 tokens a forward, by requests.
_ESTIMATES = {
    "eager": {1: 600, 8: 4_000, 64: 16_000},
    "graphs": {1: 1_700, 8: 8_000, 64: 20_000},
}


def measure_decoding(place: Place) -> Iterator[Figure]:
    """Yields the figures of this part: eager rounds, and the same as CUDA graphs."""
    model = make_a2d_model(place, place.dtype).eval()
    num_prompt, num_new = (32, 32) if place.is_tiny else (256, 64 if place.quick else 256)
    counts = (1, 2) if place.is_tiny else tuple(_ESTIMATES["eager"])
    for count in counts:
        for name, options in (("greedy", {}), ("T = 0.7, top_p", _SAMPLED)):
            for kind in _ESTIMATES:
                label = f"{count} at once, {name}, {kind}"
                if kind == "graphs" and place.device.type != "cuda":
                    yield place.figure(PART, label, None, "", note=_NO_GPU)
                    continue
                estimate = _ESTIMATES[kind].get(count) if name == "greedy" else None
                engine = _engine(place, model, is_graphed=kind == "graphs")
                case = _Case(engine, num_prompt, num_new, count, options)
                yield from _requests(place, case, label, estimate)


@dataclass(frozen=True)
class _Case:
    """Requests that are answered at once.

    Attributes:
        engine: that answers them.
        num_prompt, num_new: tokens of each.
        count: how many.
        options: of sampling.
    """

    engine: Engine
    num_prompt: int
    num_new: int
    count: int
    options: dict[str, Any]

    def answer(self, place: Place, num_new: int | None = None) -> None:
        """Answers all of them."""
        num_new = num_new or self.num_new
        params = SamplingParams(
            max_new_tokens=num_new,
            ignore_eos=True,
            rule="steps",
            steps=num_new * 2 // 5,
            **self.options,
        )
        generator = torch.Generator().manual_seed(0)
        for index in range(self.count):
            ids = torch.randint(3, place.sizes.vocab - 1, (self.num_prompt,), generator=generator)
            self.engine.add_request(
                Request(request_id=str(index), prompt=[ids.tolist()], params=params)
            )
        while self.engine.has_unfinished():
            self.engine.step()


def _requests(place: Place, case: _Case, label: str, estimate: float | None) -> Iterator[Figure]:
    engine = case.engine
    warm_up_s = place.seconds(engine.warm_up)
    first_s = place.seconds(lambda: case.answer(place))
    before = engine.num_rounds
    again_s = place.seconds(lambda: case.answer(place))
    num_rounds = engine.num_rounds - before
    num_new = case.count * case.num_new
    yield place.figure(PART, f"{label}: tokens", num_new / again_s, "1/s", estimate)
    yield place.figure(PART, f"{label}: round", 1e3 * again_s / num_rounds, "ms")
    yield place.figure(PART, f"{label}: first time over second", first_s / again_s, "")
    yield place.figure(PART, f"{label}: warm-up", warm_up_s, "s")
    yield from _costs(place, case, label)


def _costs(place: Place, case: _Case, label: str) -> Iterator[Figure]:
    """Launches and waits of a round, and how many rounds were graphs."""
    name = f"{label}: launches and waits of a round"
    if place.device.type != "cuda":
        yield place.figure(PART, name, None, "", note=_NOT_COUNTED)
        return
    engine = case.engine
    costs = round_costs(lambda: case.answer(place, _PROFILED_TOKENS), lambda: engine.num_rounds)
    yield place.figure(PART, f"{label}: launches of a round", costs.launches, "")
    yield place.figure(PART, f"{label}: waits of a round", costs.waits, "")
    counts = engine.graph_counts
    if counts:
        eager = ", ".join(f"{name} {n}" for name, n in counts.items() if "replayed" not in name)
        share = counts.get("layers replayed", 0) / engine.num_rounds
        yield place.figure(PART, f"{label}: rounds that are graphs", share, "", note=eager)


def _engine(place: Place, model: Any, *, is_graphed: bool) -> Engine:
    contract = Contract(objective="bd3lm", mask_token_id=place.sizes.vocab - 1, block_size=_BLOCK)
    options = EngineOptions(prefix_cache=False, cuda_graphs=is_graphed)
    return Engine(model, contract, eos_ids=(), max_length=4_096, options=options)
