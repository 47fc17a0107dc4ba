"""The engine's rounds: tokens per second alone and beside others."""

from collections.abc import Iterator
from typing import Any

import torch

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.models.contract import Contract
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.training import make_a2d_model

PART = "decoding"
_BLOCK = 32
# Tokens per second of an H100 on paper, 2.5 tokens a forward, by requests; without CUDA graphs.
_ESTIMATES = {1: 600, 8: 4_000, 64: 16_000}


def measure_decoding(place: Place) -> Iterator[Figure]:
    """Yields the figures of this part."""
    model = make_a2d_model(place, place.dtype).eval()
    num_prompt, num_new = (32, 32) if place.is_tiny else (256, 64 if place.quick else 256)
    counts = (1, 2) if place.is_tiny else tuple(_ESTIMATES)
    greedy: dict[str, Any] = {"rule": "steps", "steps": num_new * 2 // 5}
    sampled = greedy | {"temperature": 0.7, "top_p": 0.95}
    for count in counts:
        for name, options in (("greedy", greedy), ("T = 0.7, top_p", sampled)):
            params = SamplingParams(max_new_tokens=num_new, ignore_eos=True, **options)
            estimate = _ESTIMATES.get(count) if name == "greedy" else None
            engine = _engine(place, model)
            label = f"{count} at once, {name}"
            yield from _requests(place, engine, label, [params] * count, num_prompt, estimate)


def _requests(
    place: Place,
    engine: Engine,
    label: str,
    params: list[SamplingParams],
    num_prompt: int,
    estimate: float | None,
) -> Iterator[Figure]:
    engine.warm_up()

    def answer() -> None:
        _answer(place, engine, num_prompt, params)

    first_s = place.seconds(answer)
    before = engine.num_rounds
    again_s = place.seconds(answer)
    num_rounds = engine.num_rounds - before
    num_new = sum(each.max_new_tokens or 0 for each in params)
    yield place.figure(PART, f"{label}: tokens", num_new / again_s, "1/s", estimate)
    yield place.figure(PART, f"{label}: round", 1e3 * again_s / num_rounds, "ms")
    yield place.figure(PART, f"{label}: first time over second", first_s / again_s, "")


def _engine(place: Place, model: Any) -> Engine:
    contract = Contract(objective="bd3lm", mask_token_id=place.sizes.vocab - 1, block_size=_BLOCK)
    options = EngineOptions(prefix_cache=False)
    return Engine(model, contract, eos_ids=(), max_length=4_096, options=options)


def _answer(place: Place, engine: Engine, num_prompt: int, params: list[SamplingParams]) -> None:
    generator = torch.Generator().manual_seed(0)
    for index, each in enumerate(params):
        ids = torch.randint(3, place.sizes.vocab - 1, (num_prompt,), generator=generator)
        engine.add_request(Request(request_id=str(index), prompt=[ids.tolist()], params=each))
    while engine.has_unfinished():
        engine.step()
