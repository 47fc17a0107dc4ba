"""A roll-out worker: a model, an engine, and weights that change between draws. No Ray here."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.generation.engine.drafting import max_masks
from a2d_ray.generation.engine.engine import Engine, EngineOptions
from a2d_ray.generation.engine.request import Request, StepOutput
from a2d_ray.models.checkpoint import load_checkpoint
from a2d_ray.models.device import resolve_device, resolve_dtype
from a2d_ray.text.language_model import LanguageModel
from a2d_ray.training.objective import trained_contract


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One answer.

    Attributes:
        ids: its tokens, the end-of-turn token included; at least one.
        logprobs: of each when it was drawn, nats (rules ``ar`` and ``speculate``; else empty).
        is_complete: whether it ends with its end-of-turn token; else it was cut.
        num_steps: forwards that gave tokens.
        num_drafted, num_accepted: drafts that were verified, and those that were kept.
        version: updates that the weights had seen.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_complete: bool
    num_steps: int
    num_drafted: int
    num_accepted: int
    version: int


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a worker gave back.

    Attributes:
        rollouts: in the order of the requests.
        load_s: seconds that its last weights took to be put in place.
        draw_s: seconds that drawing took.
    """

    rollouts: list[Rollout]
    load_s: float
    draw_s: float


class RolloutWorker:
    """Draws answers.

    Args:
        config: the resolved training configuration, as plain values.
        device: where it computes: cpu, cuda, ... or auto.
        num_threads: of torch; None: they stay as they are.
    """

    def __init__(
        self, config: dict[str, Any], device: str = "auto", num_threads: int | None = None
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._config = TrainConfig.model_validate(config)
        assert self._config.rl is not None
        place = resolve_device(device)
        dtype = resolve_dtype(self._config.model.dtype, place)
        loaded = load_checkpoint(self._config.model.path, dtype=dtype, device=place)
        contract = trained_contract(loaded.contract, self._config)
        self._lm = LanguageModel(loaded.model, loaded.tokenizer, contract)
        self._engine: Engine | None = None
        self._version = 0
        self._load_s = 0.0

    def load(self, weights: Mapping[str, Any], version: int) -> None:
        """Takes new weights.

        Args:
            weights: by the plain model's names, tensors or what `to_arrays` makes of them; those
                that are missing stay.
            version: updates that they have seen.
        """
        started = time.perf_counter()
        own = dict(self._lm.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value if isinstance(value, Tensor) else _tensor(value))
        self._engine = None  # what it has stored and packed is of the old ones
        self._version = version
        self._load_s = time.perf_counter() - started

    def draw(self, requests: Sequence[Request], version: int | None = None) -> Draw:
        """Answers to requests, in their order.

        Args:
            requests: with ids of their own.
            version: of the weights that are to draw; None: whatever is loaded.

        Raises:
            FloatingPointError: the model's logits are not finite.
            RuntimeError: other weights are loaded.
        """
        if version not in (None, self._version):
            raise RuntimeError(
                f"weights of update {version} did not arrive: those of {self._version} are loaded"
            )
        started = time.perf_counter()
        if self._engine is None:
            self._engine = self._lm.make_engine(self._options(requests))
        for request in requests:
            self._engine.add_request(request)
        parts: dict[str, list[StepOutput]] = {r.request_id: [] for r in requests}
        while self._engine.has_unfinished():
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                parts[output.request_id].append(output)
        rollouts = [_whole(outputs, self._version) for outputs in parts.values()]
        draw_s = time.perf_counter() - started
        return Draw(rollouts=rollouts, load_s=self._load_s, draw_s=draw_s)

    def _options(self, requests: Sequence[Request]) -> EngineOptions:
        """An engine with room for as many requests as may run."""
        assert self._config.rl is not None
        max_running = self._config.rl.rollout.max_running
        sampling = self._config.rl.rollout.sampling
        longest = self._config.data.max_length + 2 * self._config.objective.largest_block
        room = longest + max_masks(requests[0].params)
        doubled = 1 + (sampling.cfg_scale > 0)
        return EngineOptions(
            max_running=max_running,
            kv_tokens=max_running * room * doubled,
            cuda_graphs=False,  # an engine lives for one version of the weights, beside training
        )


def _whole(outputs: Sequence[StepOutput], version: int) -> Rollout:
    last = outputs[-1]
    ids = [token for output in outputs for token in output.token_ids]
    logprobs = [entry.logprob for output in outputs for entry in output.logprobs or ()]
    if last.stop_token_id is not None:
        ids.append(last.stop_token_id)
        if last.stop_logprob is not None:
            logprobs.append(last.stop_logprob)
    return Rollout(
        ids=tuple(ids),
        logprobs=tuple(logprobs) if len(logprobs) == len(ids) else (),
        is_complete=last.finish_reason == "stop",
        num_steps=last.num_denoise_steps,
        num_drafted=last.num_drafted,
        num_accepted=last.num_accepted,
        version=version,
    )


def to_arrays(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Weights as arrays that Ray's object store holds without a copy; bfloat16 as its bits."""
    return {
        name: (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in weights.items()
    }


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # it cannot be written to, and is only read
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor
