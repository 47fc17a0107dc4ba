"""The forward of a round: tokens of all sequences in one row, logits of what was asked."""

import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from a2d_ray.generation.engine.attention import Round, RowTile, Slice, make_tiles
from a2d_ray.generation.engine.cache import KVStore
from a2d_ray.generation.engine.drafting import CALIBRATED, Acceptance, Costs, Drafter
from a2d_ray.generation.engine.twins import inference_twin
from a2d_ray.generation.engine.work import Work
from a2d_ray.models.gated_lora import gate_of

# What is known of a model, by its twin.
_costs: "weakref.WeakKeyDictionary[Any, Costs]" = weakref.WeakKeyDictionary()
_acceptance: "weakref.WeakKeyDictionary[Any, Acceptance]" = weakref.WeakKeyDictionary()
T = TypeVar("T")
MEASURED_TIMES = 3
HEAD_ROWS = 512  # positions whose logits are held at a time: 300 MB for a vocabulary of 152,000


class ModelRunner:
    """Runs rounds on one model.

    Args:
        model: A2D model with head.
        kv_tokens: capacity of the KV store; None: there is none (MDLM).
        is_shifted: `right_shift_logits`: the logits at i - 1 predict token i.

    Attributes:
        twin: the engine's view of the model.
    """

    def __init__(self, model: Any, *, kv_tokens: int | None, is_shifted: bool) -> None:
        self.twin = inference_twin(model)
        self._is_shifted = is_shifted
        config = model.config
        weight = model.lm_head.weight
        self._device = weight.device
        self._store = None
        if kv_tokens is not None:
            self._store = KVStore(
                num_layers=config.num_hidden_layers,
                num_key_heads=config.num_key_value_heads,
                head_dim=getattr(config, "head_dim", None)
                or config.hidden_size // config.num_attention_heads,
                capacity=kv_tokens,
                dtype=weight.dtype,
                device=weight.device,
            )

    def forward(self, works: Sequence[Work]) -> list[Tensor]:
        """Final hidden states [n, H] of each work's tokens; their finished blocks are stored."""
        ids = torch.cat([w.ids_n for w in works])
        positions = torch.cat([w.position_n for w in works])
        slices = [self._slice(w) for w in works]
        hidden_NH = self._run(
            ids, positions, Round(slices=slices, store=self._store), _noised_tokens(works)
        )
        for work in works:
            for page in work.chunk.pages:
                page.is_filled = True
        return list(hidden_NH.split([w.num_tokens for w in works]))

    def _run(
        self, id_N: Tensor, position_N: Tensor, ragged: Round, is_noised_N: Tensor | None = None
    ) -> Tensor:
        """Final hidden states [N, H]; gated adapters act at the noised tokens, None: at none."""
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device)
        with self._gate_opened(is_noised_N):
            return self.twin.model(
                input_ids=id_N.to(self._device)[None],
                position_ids=position_N.to(self._device)[None],
                attention_mask=unread,
                use_cache=False,
                ragged=ragged,
            ).last_hidden_state[0]

    def _gate_opened(self, is_noised_N: Tensor | None) -> AbstractContextManager[None]:
        gate = gate_of(self.twin)
        if gate is None:
            return nullcontext()
        return gate.opened(None if is_noised_N is None else is_noised_N.to(self._device)[None])

    def logits(self, works: Sequence[Work], hidden: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields float32 logits [asked, V] of each work, from what `forward` returned."""
        pairs = zip(works, hidden, strict=True)
        yield from self.head([self._asked_rows(work, part_nH) for work, part_nH in pairs])

    def head(self, rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields float32 logits [M, V] of each of these hidden states [M, H].

        The head runs for as many of them at a time as have about `HEAD_ROWS` rows, so what a
        round takes does not grow with the requests in it.
        """
        for group in _groups(rows):
            asked_NH = group[0] if len(group) == 1 else torch.cat(group)
            if not len(asked_NH):
                yield from group
            else:
                yield from self.twin.lm_head(asked_NH).float().cpu().split([*map(len, group)])

    def _slice(self, work: Work) -> Slice:
        tiles = make_tiles(work.num_visible, self._device)
        if work.sight is not None:
            hidden_mS = work.sight.hidden_mS.to(self._device)
            last = RowTile(
                rows=(len(work.num_visible), work.num_tokens),
                num_keys=work.sight.num_common + hidden_mS.shape[1],
                num_common=work.sight.num_common,
                hidden_RS=hidden_mS,
            )
            tiles = (*tiles, last)
        return Slice(
            num_tokens=work.num_tokens,
            new_runs=work.new_runs,
            all_runs=work.all_runs,
            tiles=tiles,
        )

    def _asked_rows(self, work: Work, hidden_nH: Tensor) -> Tensor:
        """Hidden states whose logits predict the asked positions."""
        if work.rows is not None:
            return hidden_nH[work.rows.to(self._device)]
        if not self._is_shifted:
            return hidden_nH[(work.asked - work.start).to(self._device)]
        storage = work.storage
        for page, stop in _page_stops(work):
            page.last_hidden_H = hidden_nH[stop - work.start - 1].clone()
        before = None if storage is None else storage.last_hidden
        if work.start == 0 or before is None:  # nothing precedes position 0: its own logits
            index = (work.asked - work.start - 1).clamp(min=0)
            return hidden_nH[index.to(self._device)]
        index = (work.asked - work.start).to(self._device)
        return torch.cat([before[None], hidden_nH])[index]

    def idle_forward(self, num_tokens: int) -> Tensor:
        """A forward whose tokens attend to each other and are stored nowhere: for measuring."""
        tiles = make_tiles([*range(1, num_tokens + 1)], self._device)
        alone = Slice(num_tokens=num_tokens, new_runs=None, all_runs=(), tiles=tiles)
        zero_N = torch.zeros(num_tokens, dtype=torch.int64)
        return self._run(zero_N, torch.arange(num_tokens), Round(slices=[alone], store=None))

    def timed(self, run: Callable[[], T]) -> tuple[float, T]:
        """Seconds that it takes, CPU seconds on a CPU, and what it returns."""
        is_cpu = self._device.type == "cpu"
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
        acceptance=_acceptance.setdefault(runner.twin, Acceptance()),
    )


@torch.inference_mode()
def measure_costs(runner: ModelRunner, max_length: int) -> Costs:
    """Times forwards and heads of several sizes: two seconds on a CPU for 135M parameters.

    A model is measured once.
    """
    known = _costs.get(runner.twin)
    if known is not None:
        return known
    sizes = [size for size in CALIBRATED if size <= max(max_length, 2)]
    layers = dict.fromkeys(sizes, math.inf)
    head = dict.fromkeys(sizes, math.inf)
    for _ in range(MEASURED_TIMES):  # in turns: a machine that slows down slows all of them
        for size in sizes:
            seconds, hidden_nH = runner.timed(lambda n=size: runner.idle_forward(n))  # type: ignore[misc]
            layers[size] = min(layers[size], seconds)
            seconds, _ = runner.timed(lambda rows=hidden_nH: list(runner.head([rows])))  # type: ignore[misc]
            head[size] = min(head[size], seconds)
    costs = _costs[runner.twin] = Costs(layers, head)
    return costs


def _noised_tokens(works: Sequence[Work]) -> Tensor:
    """Which of the works' tokens [N] are noised: the last ones of each."""
    sizes = [size for w in works for size in (w.num_tokens - w.num_noised, w.num_noised)]
    is_noised_P = torch.tensor([False, True] * len(works))
    return is_noised_P.repeat_interleave(torch.tensor(sizes))


def _groups(rows: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of about `HEAD_ROWS` rows together."""
    group: list[Tensor] = []
    for part in rows:
        if group and sum(map(len, group)) + len(part) > HEAD_ROWS:
            yield group
            group = []
        group.append(part)
    yield group


def _page_stops(work: Work) -> list[tuple[Any, int]]:
    stops = []
    stop = work.chunk.start
    for page in work.chunk.pages:
        stop += page.num_tokens
        stops.append((page, stop))
    return stops
