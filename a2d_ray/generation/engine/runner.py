"""The forward of a round: tokens of all sequences in one row, logits of what was asked."""

import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from a2d_ray.diffusion.decoding import guide
from a2d_ray.generation.decoding.decide import Decision, decide
from a2d_ray.generation.decoding.reading import is_wide, read
from a2d_ray.generation.engine.attention import Round
from a2d_ray.generation.engine.cache import KVStore, SlotStore
from a2d_ray.generation.engine.graphs import Capture, RoundGraphs
from a2d_ray.generation.engine.padding import Buckets
from a2d_ray.generation.engine.plan import (
    HeadRows,
    HiddenRows,
    Reading,
    RoundTokens,
    page_rows,
    plan_heads,
    plan_tokens,
)
from a2d_ray.generation.engine.transfer import Sent, send, send_apart
from a2d_ray.generation.engine.twins import inference_twin
from a2d_ray.generation.engine.work import Question, Verdict, Work, idle_work
from a2d_ray.models.attention_state import attention_state
from a2d_ray.models.gated_lora import gate_of
from a2d_ray.models.parts import head_of

HEAD_ROWS = 512  # positions whose logits are held at a time: 300 MB for a vocabulary of 152,000
BATCH_ROWS = 32  # decided at a time on CPUs: more would leave the caches
SPARE_ROWS = 24  # cost a CPU less than reading the head's weights again
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
        graphs: of its rounds; None: they run eagerly.
        most_spare_rows: up to as many, logits that may be asked for come with the others.
    """

    def __init__(self, model: Any, *, kv_tokens: int | None, is_shifted: bool) -> None:
        self.model = model
        self.twin = inference_twin(model)
        self._is_shifted = is_shifted
        self._logits_of = head_of(self.twin)
        self.device = model.device
        self.most_spare_rows = SPARE_ROWS if self.device.type == "cpu" else 0
        self.graphs: RoundGraphs | None = None
        self._unread_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self._rows = HiddenRows([], is_shifted=is_shifted)
        self._hidden_NH = torch.empty(0, model.config.hidden_size, device=self.device)
        self._heads: tuple[HeadRows, ...] = ()  # what was asked last, on the CPU
        self._spare: list[int] = []  # rows whose logits come with the next ones
        self._kept: dict[int, Tensor] = {}  # logits by row, before anybody asked
        self._is_flash = False
        self._store: KVStore | SlotStore | None = None
        if kv_tokens is not None:
            is_cpu = self.device.type == "cpu"
            self._store = KVStore(kv_tokens) if is_cpu else SlotStore(kv_tokens)
            self._make_room()

    def _make_room(self) -> None:
        """A forward over one token, so that memory is taken now and not by the first request."""
        first = [(0, 1)]
        _, ragged = self.idle_round([idle_work(1, new_runs=first, all_runs=first)], self._store)
        self._is_flash = ragged.is_flash

    @torch.inference_mode()
    def use_graphs(self, capture: Capture, units: Collection[int], max_running: int) -> None:
        """From now on rounds are padded, and captured where that pays.

        Args:
            capture: how.
            units: rows of the segments that requests bring.
            max_running: requests in a round.
        """
        buckets = Buckets(
            units=tuple(sorted(units)),
            scratch=self._store.scratch if isinstance(self._store, SlotStore) else 0,
            num_requests=max_running + 1,
            is_flash=self._is_flash,
        )
        hidden_1H, _ = self.idle_round([idle_work(1)])
        runner = weakref.proxy(self)  # a cycle would keep the store until it is looked for
        self.graphs = RoundGraphs(
            capture,
            buckets,
            run_layers=lambda tokens: runner._run(tokens, runner._store),
            decide=lambda head: runner._graphed_words(head),
            hidden_NH=hidden_1H.new_zeros(buckets.most_rows, hidden_1H.shape[1]),
        )

    @torch.inference_mode()
    def capture_usual(self, max_running: int, unit: int) -> None:
        """Captures what up to so many requests like the last one need; see `RoundGraphs`."""
        if self.graphs is not None and len(self._heads) == 1:
            is_gated = gate_of(self.twin) is not None
            self.graphs.capture_usual(self._heads[0], max_running, unit, is_gated=is_gated)

    def run(self, works: Sequence[Work], questions: Sequence[Question]) -> list[Verdict]:
        """Runs a round: its finished blocks are stored, its questions are answered.

        One copy to the device, and one back.
        """
        is_gated = gate_of(self.twin) is not None
        tokens = plan_tokens(works, is_cpu=self.device.type == "cpu", is_gated=is_gated)
        num_tokens = len(tokens.id_N)
        if self.graphs is not None:
            tokens = self.graphs.pad_tokens(tokens)
        self._rows = HiddenRows(works, is_shifted=self._is_shifted)
        heads, reading = self._plan(questions)
        self._kept = {}
        spare = self._rows.spare(works) if self.most_spare_rows else []
        self._spare = spare if len(spare) <= self.most_spare_rows else []
        pages = page_rows(works) if self._is_shifted else []  # their last hidden states are kept
        page_row_P = torch.tensor([row for _, row in pages]) if pages else None
        parts: list[Any] = [tokens, page_row_P, *heads]
        sent_tokens, sent_pages, *sent_heads = send_apart(parts, self.device)
        self._hidden_NH = self._layers(sent_tokens)[:num_tokens]
        for work in works:
            for page in work.chunk.pages:
                page.is_filled = True
        if pages:
            last_PH = self._hidden_NH[sent_pages.value]
            for (page, _), last_H in zip(pages, last_PH, strict=True):
                page.last_hidden_H = last_H
        return self._answers(sent_heads, reading)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answers more questions about the round that was run last."""
        heads, reading = self._plan(questions)
        return self._answers(send_apart(heads, self.device), reading)

    def _layers(self, sent: Sent[RoundTokens]) -> Tensor:
        if self.graphs is None:
            return self._run(sent.value, self._store)
        return self.graphs.run_layers(sent)

    def _plan(self, questions: Sequence[Question]) -> tuple[tuple[HeadRows, ...], Reading]:
        if not questions:
            return (), Reading(asked=(), order=(), earlier=())
        is_cpu = self.device.type == "cpu"
        heads, reading = plan_heads(
            questions,
            self._rows,
            head_rows=HEAD_ROWS if is_cpu else DEVICE_ROWS,
            batch_rows=BATCH_ROWS if is_cpu else DEVICE_ROWS,
        )
        if self.graphs is not None:
            self._heads = heads
            is_far = self._rows.num_tokens > len(self.graphs.hidden_NH)
            heads = self.graphs.pad_heads(heads, is_far=is_far or bool(reading.earlier))
        return heads, reading

    def _answers(self, heads: Sequence[Sent[HeadRows]], reading: Reading) -> list[Verdict]:
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
        heads: Sequence[Sent[HeadRows]],
        reading: Reading,
        *,
        is_exact: bool,
    ) -> list[Verdict] | None:
        """Answers in the order in which they are asked; None: `is_exact` is needed."""
        decisions: list[Decision] = []
        for head in heads:
            if head.value.is_padded and self.graphs is not None and not is_exact:
                held = self.graphs.decide(head)
                kept = held if len(heads) == 1 else held.clone()  # the next would overwrite it
                decisions.append(Decision(words=kept, logp_MV=None))
            else:
                decisions += self._decisions(hidden_NH, head.value, is_exact=is_exact)
        words = [decision.words for decision in decisions]
        on_host = (words[0] if len(words) == 1 else torch.cat(words)).cpu().numpy()
        batches = [batch for head in heads for batch in head.value.batches]
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

    def _decisions(
        self, hidden_NH: Tensor, head: HeadRows, *, is_exact: bool
    ) -> Iterator[Decision]:
        logits_RV = self._head(hidden_NH, head)
        first = 0
        for batch in head.batches:
            stop = first + len(batch.place_N)
            yield decide(logits_RV[first:stop], batch, is_exact=is_exact)
            first = stop

    def _graphed_words(self, head: HeadRows) -> Tensor:
        """Words of a padded decision, about hidden states that lie where they always do."""
        assert self.graphs is not None
        (decision,) = self._decisions(self.graphs.hidden_NH, head, is_exact=False)
        return decision.words

    def _head(self, hidden_NH: Tensor, head: HeadRows) -> Tensor:
        """float32 logits, guided where that is asked for.

        With the first of a round come those of its spare rows, which are kept.
        """
        rows = head.row_R.tolist() if self._kept and head.guided_G is None else []
        if rows and self._kept.keys() >= {*rows}:
            return torch.stack([self._kept[row] for row in rows])
        num_rows = len(head.row_R)
        spare, self._spare = self._spare, []
        row_R = torch.cat([head.row_R, torch.tensor(spare)]) if spare else head.row_R
        logits_RV = self._logits_of(hidden_NH[row_R]).float()
        if spare:
            self._kept = dict(zip(spare, logits_RV[num_rows:], strict=True))
            logits_RV = logits_RV[:num_rows]
        if head.guided_G is None or head.factor_G1 is None:
            return logits_RV
        num_asked = num_rows - len(head.guided_G)
        guided_GV = guide(logits_RV[head.guided_G], logits_RV[num_asked:], head.factor_G1)
        return logits_RV[:num_asked].index_copy_(0, head.guided_G, guided_GV)

    def _run(self, tokens: RoundTokens, store: KVStore | SlotStore | None) -> Tensor:
        """Final hidden states [N, H]; gated adapters act at the noised tokens, None: at none."""
        return self._forward(tokens, Round(slices=tokens.slices, spans=tokens.spans, store=store))

    def _forward(self, tokens: RoundTokens, ragged: Round) -> Tensor:
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

    @torch.inference_mode()
    def idle_round(
        self, works: Sequence[Work], store: KVStore | SlotStore | None = None
    ) -> tuple[Tensor, Round]:
        """Final hidden states [N, H] of a round that nobody asked for, and what its layers did.

        Args:
            works: of `idle_work`.
            store: of their keys and values; None: nothing is stored.
        """
        planned = plan_tokens(works, is_cpu=self.device.type == "cpu", is_gated=False)
        tokens = send(planned, self.device)
        ragged = Round(slices=tokens.slices, spans=tokens.spans, store=store)
        return self._forward(tokens, ragged), ragged

    @torch.inference_mode()
    def idle_head(self, hidden_RH: Tensor) -> Tensor:
        """Logits [R, V] that nobody asks for."""
        return self._logits_of(hidden_RH).float()
