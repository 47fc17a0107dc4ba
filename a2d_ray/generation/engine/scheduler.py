"""Which requests run, and what each of them brings to the next round."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from a2d_ray.config import AR_RULES
from a2d_ray.generation.decoding.canvas import make_canvas
from a2d_ray.generation.engine.drafting import Drafter
from a2d_ray.generation.engine.pages import Page, PageTable
from a2d_ray.generation.engine.request import Request
from a2d_ray.generation.engine.sequence import Sequence
from a2d_ray.generation.engine.speculation import SpeculativeSequence
from a2d_ray.generation.engine.work import Work
from a2d_ray.models.contract import Contract

AnySequence = Sequence | SpeculativeSequence


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Limits and switches of an engine. None of them changes what a request answers.

    Attributes:
        max_running: requests in one round; others wait, first come first served.
        max_tokens_per_round: prompts are stored in chunks, so that a round stays about this
            small and a long prompt does not stall the answers beside it.
        kv_tokens: tokens that the KV store holds, prompts and answers of all running requests
            and the prefix cache; None: 32,768, or the model's positions if those are more.
        prefix_cache: keep what was stored of prompts and answers, for later requests.
        fused_commit: store a finished block in the forward that begins the next one.
        cuda_graphs: launch rounds of the usual shapes as CUDA graphs; ``auto``: on CUDA devices.
    """

    max_running: int = 64
    max_tokens_per_round: int = 512
    kv_tokens: int | None = None
    prefix_cache: bool = True
    fused_commit: bool = True
    cuda_graphs: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_running", "max_tokens_per_round", "kv_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class Scheduler:
    """First come, first served: nobody is overtaken, so nobody waits for ever.

    Args:
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        eos_ids: end-of-turn tokens.
        table: of the KV store; None: nothing is stored (MDLM).
        options: limits.
        drafter: plans drafts.
    """

    def __init__(
        self,
        contract: Contract,
        eos_ids: Collection[int],
        table: PageTable | None,
        options: EngineOptions,
        drafter: Drafter,
    ) -> None:
        self._contract = contract
        self._eos_ids = eos_ids
        self._table = table
        self._options = options
        self._drafter = drafter
        self.waiting: deque[Request] = deque()
        self._next: AnySequence | None = None  # of who waits first: built once, asked every round
        self.running: dict[str, AnySequence] = {}

    def plan_round(self) -> list[Work]:
        """Lets requests in while there is room; the tokens that each running one brings.

        Every request that denoises takes part in every round. What they leave of the round's
        tokens goes to prompts, the oldest first, and at least one block of a prompt is stored.
        """
        self._admit()
        self._drafter.num_running = len(self.running)
        denoising = [s for s in self.running.values() if not s.is_prefilling]
        prefilling = [s for s in self.running.values() if s.is_prefilling]
        works: list[Work] = []
        in_flight: set[Page] = set()
        budget = self._options.max_tokens_per_round
        for index, sequence in enumerate(denoising + prefilling):
            if budget <= 0 and index > len(denoising):
                break
            for work in sequence.plan(budget, in_flight, is_fused=self._options.fused_commit):
                in_flight.update(work.chunk.pages)
                budget -= work.num_tokens
                works.append(work)
        return works

    def remove(self, request_id: str) -> None:
        """Forgets a request, wherever it is; unknown ids are fine."""
        sequence = self.running.pop(request_id, None)
        if sequence is not None:
            sequence.release()
        elif any(r.request_id == request_id for r in self.waiting):
            self.waiting = deque(r for r in self.waiting if r.request_id != request_id)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._options.max_running:
            if self._next is None or self._next.request is not self.waiting[0]:
                self._next = self._sequence(self.waiting[0])
            if not self._next.admit():
                return
            self.running[self.waiting.popleft().request_id] = self._next
            self._next = None

    def _sequence(self, request: Request) -> AnySequence:
        canvas = make_canvas(request.prompt, request.params, self._contract)
        if request.params.rule not in AR_RULES:
            return Sequence(request, canvas, self._contract, self._eos_ids, self._table)
        assert self._table is not None, "no AR mode without a KV store"
        return SpeculativeSequence(
            request, canvas, self._contract, self._eos_ids, self._table, self._drafter
        )
