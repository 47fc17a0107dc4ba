"""The forward of a round: tokens of all sequences in one row, logits of what was asked."""

import math
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from a2d_ray.diffusion.decoding import guide
from a2d_ray.generation.decoding.decide import decide
from a2d_ray.generation.decoding.reading import is_wide, read
from a2d_ray.generation.engine.attention import Round
from a2d_ray.generation.engine.cache import KVStore, Runs, SlotStore
from a2d_ray.generation.engine.drafting import CALIBRATED, Acceptance, Costs, Drafter
from a2d_ray.generation.engine.plan import (
    HeadRows,
    HiddenRows,
    Reading,
    RoundPlan,
    RoundTokens,
    page_rows,
    plan_heads,
    plan_tokens,
)
from a2d_ray.generation.engine.storage import StoredBlocks
from a2d_ray.generation.engine.transfer import send
from a2d_ray.generation.engine.twins import inference_twin
from a2d_ray.generation.engine.work import Question, Verdict, Work
from a2d_ray.models.attention_state import attention_state
from a2d_ray.models.gated_lora import gate_of
from a2d_ray.models.parts import head_of

# What is known of a model, whatever its weights become.
_costs: "weakref.WeakKeyDictionary[Any, Costs]" = weakref.WeakKeyDictionary()
_acceptance: "weakref.WeakKeyDictionary[Any, Acceptance]" = weakref.WeakKeyDictionary()
T = TypeVar("T")
MEASURED_TIMES = 3
HEAD_ROWS = 512  # positions whose logits are held at a time: 300 MB for a vocabulary of 152,000
BATCH_ROWS = 32  # decided at a time on CPUs: more would leave the caches
DEVICE_ROWS = 2048  # both, elsewhere: one pass over 64 requests; 1.2 GB of logits, and copies


class ModelRunner:
    """Runs rounds on one model.

    Args:
        model: A2D model with head.
        kv_tokens: capacity of the KV store; None: there is none (MDLM).
        is_shifted: `right_shift_logits`: the logits at i - 1 predict token i.

    Attributes:
        model: as given.
        twin: the engine's view of it.
        device: where it is.
    """

    def __init__(self, model: Any, *, kv_tokens: int | None, is_shifted: bool) -> None:
        self.model = model
        self.twin = inference_twin(model)
        self._is_shifted = is_shifted
        self._logits_of = head_of(self.twin)
        self.device = model.device
        self._unread_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self._rows = HiddenRows([], is_shifted=is_shifted)
        self._hidden_NH = torch.empty(0, model.config.hidden_size, device=self.device)
        self._store: KVStore | SlotStore | None = None
        if kv_tokens is not None:
            is_cpu = self.device.type == "cpu"
            self._store = KVStore(kv_tokens) if is_cpu else SlotStore(kv_tokens)
            self._make_room()

    @torch.inference_mode()
    def _make_room(self) -> None:
        """A forward over one token, so that memory is taken now and not by the first request."""
        first = [(0, 1)]
        self._run(self._idle_tokens(1, new_runs=first, all_runs=first), self._store)

    def run(self, works: Sequence[Work], questions: Sequence[Question]) -> list[Verdict]:
        """Runs a round: its finished blocks are stored, its questions are answered.

        One copy to the device, and one back.
        """
        tokens = plan_tokens(
            works,
            is_cpu=self.device.type == "cpu",
            is_gated=gate_of(self.twin) is not None,
            keeps_last=self._is_shifted,
        )
        self._rows = HiddenRows(works, is_shifted=self._is_shifted)
        heads, reading = self._plan(questions)
        plan = send(RoundPlan(tokens=tokens, heads=heads), self.device)
        assert plan.tokens is not None
        self._hidden_NH = self._run(plan.tokens, self._store)
        for work in works:
            for page in work.chunk.pages:
                page.is_filled = True
        if plan.tokens.page_row_P is not None:
            last_PH = self._hidden_NH[plan.tokens.page_row_P]
            for (page, _), last_H in zip(page_rows(works), last_PH, strict=True):
                page.last_hidden_H = last_H
        return self._answers(plan.heads, reading)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answers more questions about the round that was run last."""
        heads, reading = self._plan(questions)
        plan = send(RoundPlan(tokens=None, heads=heads), self.device)
        return self._answers(plan.heads, reading)

    def _plan(self, questions: Sequence[Question]) -> tuple[tuple[HeadRows, ...], Reading]:
        if not questions:
            return (), Reading(asked=(), order=(), earlier=())
        is_cpu = self.device.type == "cpu"
        return plan_heads(
            questions,
            self._rows,
            head_rows=HEAD_ROWS if is_cpu else DEVICE_ROWS,
            batch_rows=BATCH_ROWS if is_cpu else DEVICE_ROWS,
        )

    def _answers(self, heads: tuple[HeadRows, ...], reading: Reading) -> list[Verdict]:
        if not heads:
            return []
        hidden_NH = self._hidden_NH
        if reading.earlier:
            hidden_NH = torch.cat([hidden_NH, torch.stack(reading.earlier)])
        is_exact = self.device.type == "cpu"
        answers = self._decided(hidden_NH, heads, reading, is_exact=is_exact)
        if answers is None:  # a nucleus was larger than what was looked at; rare
            answers = self._decided(hidden_NH, heads, reading, is_exact=True)
        assert answers is not None
        places = zip(reading.order, answers, strict=True)
        return [answer for _, answer in sorted(places, key=lambda pair: pair[0])]

    def _decided(
        self,
        hidden_NH: Tensor,
        heads: tuple[HeadRows, ...],
        reading: Reading,
        *,
        is_exact: bool,
    ) -> list[Verdict] | None:
        """Answers in the order in which they are asked; None: `is_exact` is needed."""
        decisions = []
        for head in heads:
            logits_RV = self._head(hidden_NH[head.row_R], head)
            first = 0
            for batch in head.batches:
                stop = first + len(batch.place_N)
                decisions.append(decide(logits_RV[first:stop], batch, is_exact=is_exact))
                first = stop
        words = [decision.words for decision in decisions]
        on_host = (words[0] if len(words) == 1 else torch.cat(words)).cpu().numpy()
        batches = [batch for head in heads for batch in head.batches]
        asked = [one for head in reading.asked for one in head]
        first = 0
        pieces = []
        for decision in decisions:
            pieces.append(on_host[first : first + len(decision.words)])
            first += len(decision.words)
        if not is_exact and any(map(is_wide, pieces, batches)):
            return None
        memories = [decision.logp_MV for decision in decisions]
        read_each = map(read, pieces, asked, batches, memories)
        return [answer for answers in read_each for answer in answers]

    def _head(self, hidden_RH: Tensor, head: HeadRows) -> Tensor:
        """float32 logits, guided where that is asked for."""
        logits_RV = self._logits_of(hidden_RH).float()
        if head.guided_G is None or head.factor_G1 is None:
            return logits_RV
        num_asked = len(logits_RV) - len(head.guided_G)
        guided_GV = guide(logits_RV[head.guided_G], logits_RV[num_asked:], head.factor_G1)
        return logits_RV[:num_asked].index_copy_(0, head.guided_G, guided_GV)

    def _run(self, tokens: RoundTokens, store: KVStore | SlotStore | None) -> Tensor:
        """Final hidden states [N, H]; gated adapters act at the noised tokens, None: at none."""
        ragged = Round(slices=tokens.slices, spans=tokens.spans, store=store)
        state = attention_state(self.twin, ragged=ragged)
        with self._gate_opened(tokens), state as passed:
            return self.twin.base_model(
                input_ids=tokens.id_N[None],
                position_ids=tokens.position_N[None],
                attention_mask=self._unread_mask,
                use_cache=False,
                **passed,
            ).last_hidden_state[0]

    def _gate_opened(self, tokens: RoundTokens) -> AbstractContextManager[None]:
        gate = gate_of(self.twin)
        if gate is None:
            return nullcontext()
        is_noised_N = tokens.is_noised_N
        return gate.opened(None if is_noised_N is None else is_noised_N[None], tokens.noised_row_M)

    def idle_forward(self, num_tokens: int) -> Tensor:
        """A forward whose tokens attend to each other and are stored nowhere: for measuring."""
        return self._run(self._idle_tokens(num_tokens, new_runs=None, all_runs=()), None)

    def _idle_tokens(
        self, num_tokens: int, *, new_runs: Runs | None, all_runs: Runs
    ) -> RoundTokens:
        """A round of tokens that nobody asked for."""
        work = Work(
            sequence=None,
            storage=None,
            chunk=StoredBlocks(start=0, stop=0, pages=()),
            ids=[0] * num_tokens,
            positions=range(num_tokens),
            num_noised=0,
            new_runs=new_runs,
            all_runs=all_runs,
            num_visible=[*range(1, num_tokens + 1)],
        )
        is_cpu = self.device.type == "cpu"
        tokens = plan_tokens([work], is_cpu=is_cpu, is_gated=False, keeps_last=False)
        return send(tokens, self.device)

    def idle_head(self, hidden_RH: Tensor) -> Tensor:
        """Logits that nobody asks for: for measuring."""
        return self._logits_of(hidden_RH).float()

    def timed(self, run: Callable[[], T]) -> tuple[float, T]:
        """Seconds that it takes, CPU seconds on a CPU, and what it returns."""
        is_cpu = self.device.type == "cpu"
        clock = time.process_time if is_cpu else time.perf_counter
        started = clock()
        result = run()
        if not is_cpu:
            torch.accelerator.synchronize()
        return clock() - started, result


def make_drafter(runner: ModelRunner, max_length: int) -> Drafter:
    """Plans drafts for an engine; its engines share what is known of a model."""
    return Drafter(
        measure=partial(measure_costs, runner, max_length),
        acceptance=_acceptance.setdefault(runner.model, Acceptance()),
    )


@torch.inference_mode()
def measure_costs(runner: ModelRunner, max_length: int) -> Costs:
    """Times forwards and heads of several sizes: two seconds on a CPU for 135M parameters.

    A model is measured once.
    """
    known = _costs.get(runner.model)
    if known is not None:
        return known
    sizes = [size for size in CALIBRATED if size <= max(max_length, 2)]
    layers = dict.fromkeys(sizes, math.inf)
    head = dict.fromkeys(sizes, math.inf)
    for _ in range(MEASURED_TIMES):  # in turns: a machine that slows down slows all of them
        for size in sizes:
            seconds, hidden_nH = runner.timed(lambda n=size: runner.idle_forward(n))  # type: ignore[misc]
            layers[size] = min(layers[size], seconds)
            seconds, _ = runner.timed(lambda rows=hidden_nH: runner.idle_head(rows))  # type: ignore[misc]
            head[size] = min(head[size], seconds)
    costs = _costs[runner.model] = Costs(layers, head)
    return costs
